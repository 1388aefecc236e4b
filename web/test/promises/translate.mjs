// Translating: the reference's ids and texts, greedily and by beam search.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOAD_MS, RUN_MS } from '../page.mjs';
import { artefact, modelJson } from '../support.mjs';

const reference = modelJson('ui-en-de', 'reference.json');
const { max_positions: context } = modelJson('ui-en-de', 'config.json');
const indices = reference.beam4_ids.map((_, index) => index);
const short = ({ length }) => length >= 6 && length <= 16;

const greedy = indices.filter((index) => short(reference.greedy_ids[index])).slice(0, 2);
/** A text that beam search translates in another way. */
const beam = indices.find((index) => {
  const [one, other] = [reference.greedy_ids[index], reference.beam4_ids[index]];
  return short(one) && short(other) && String(one) !== String(other);
});

async function translate(page, text, beams) {
  await page.type('panel-translate/input', text);
  await page.check('panel-translate/beams', beams);
  await page.run('translate');
  return page.tokens('panel-translate/target');
}

const ids = (tokens) => tokens.map(({ id }) => id);
const text = (tokens) => tokens.filter(({ kind }) => kind !== 'end').map(({ text }) => text).join('');

export function translates(opened, browser) {
  test('translates as the reference does', { timeout: LOAD_MS + 3 * RUN_MS }, async () => {
    const page = opened();
    await page.open('translate');
    for (const index of greedy) {
      const { en } = reference.test[index];
      const target = await translate(page, en, false);
      assert.deepEqual(ids(target), reference.greedy_ids[index], en);
      assert.equal(text(target), reference.greedy_text[index]);
      assert.equal(text(await page.tokens('panel-translate/source')), en);
    }
    await page.page.screenshot({ path: artefact(`${browser}-translate.png`), fullPage: true });
  });

  test('translates with four beams as the reference does', { timeout: RUN_MS }, async () => {
    const target = await translate(opened(), reference.test[beam].en, true);
    assert.deepEqual(ids(target), reference.beam4_ids[beam]);
    assert.match(await opened().text('panel-translate/target/speed'), /^\d+ tokens in [\d.]+ s · score -[\d.]+$/);
  });

  test('colours source and translation by the chosen layer', async () => {
    await translate(opened(), reference.test[greedy[1]].en, false);
    await opened().checkColours('panel-translate/source');
    await opened().checkColours('panel-translate/target');
  });

  test('says when a text is too long, then translates again', { timeout: 2 * RUN_MS }, async () => {
    const page = opened();
    await page.type('panel-translate/input', 'word '.repeat(context));
    await page.click('panel-translate/run');
    await page.status('failed', RUN_MS);
    assert.match(await page.text('message-text'), new RegExp(`found \\d+ tokens, expected at most the model's ${context}`));
    await translate(page, reference.test[greedy[0]].en, false);
    assert.ok(!(await page.visible('message')));
    assert.deepEqual(page.problems, []);
  });
}
