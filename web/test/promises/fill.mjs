// Filling masks: the reference's candidates and probabilities.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOAD_MS, RUN_MS, assertClose } from '../page.mjs';
import { artefact, modelJson } from '../support.mjs';

const { typed } = modelJson('ui-fill', 'reference.json');
/** Where no token is undecided between two experts. */
const sentences = typed.filter(({ route_margin: margin }) => margin >= 1e-3).slice(0, 3);

/** A token of the vocabulary as the page shows it: the end of a word is marked as such. */
const shown = (token) => (token.startsWith('▁') ? token.slice(1) || '␣' : /^\p{L}/u.test(token) ? `…${token}` : token);

async function fill(page, text) {
  await page.type('panel-fill/input', text);
  await page.run('fill');
  return page.bars('panel-fill/masks');
}

export function fills(opened, browser) {
  test('fills masks as the reference does', { timeout: LOAD_MS + 3 * RUN_MS }, async () => {
    const page = opened();
    await page.open('fill');
    assert.ok(sentences.length > 1);
    for (const { text, ids, top5_ids: [top], top5_tokens: [names], top5_probabilities: [probabilities] } of sentences) {
      const found = await fill(page, text);
      assert.deepEqual(found.map(({ id }) => id), top, text);
      assert.deepEqual(found.map(({ label }) => label), names.map(shown));
      assertClose(found.map(({ probability }) => probability), probabilities, 1e-3);
      assert.ok(found.every(({ probability, shown }) => shown === `${(100 * probability).toFixed(1)} %`));
      const tokens = await page.tokens('panel-fill');
      assert.deepEqual(tokens.map(({ id }) => id), ids);
      assert.equal(tokens.slice(0, -1).map(({ text }) => text).join(''), text);
    }
    await page.page.screenshot({ path: artefact(`${browser}-fill.png`), fullPage: true });
  });

  test('colours the text by the chosen layer', () => opened().checkColours('panel-fill'));

  test('puts masks and candidates into the text', { timeout: RUN_MS }, async () => {
    const page = opened();
    const best = (mask) => `masks/figure:nth-child(${mask})/li:first-child button`;
    await page.type('panel-fill/input', ' has been deleted. ');
    await page.page.keyboard.press('Home');
    await page.click('panel-fill/insert');
    assert.equal(await page.value('panel-fill/input'), '[MASK] has been deleted. ');

    const found = await fill(page, 'The [MASK] has been [MASK].');
    assert.equal(found.length, 10);
    const word = (entry) => (entry.label.startsWith('…') ? entry.label.slice(1) : ` ${entry.label}`);
    await page.click(best(2));
    assert.equal(await page.value('panel-fill/input'), `The [MASK] has been${word(found[5])}.`);
    await page.click(best(1));
    assert.equal(await page.value('panel-fill/input'), `The${word(found[0])} has been${word(found[5])}.`);
  });

  test('says when a text has no mask, then fills again', { timeout: 2 * RUN_MS }, async () => {
    const page = opened();
    await page.type('panel-fill/input', 'Nothing is missing.');
    await page.click('panel-fill/run');
    await page.status('failed', RUN_MS);
    assert.match(await page.text('message-text'), /found no mask, expected \[MASK\] at least once/);
    await fill(page, sentences[0].text);
    assert.deepEqual(page.problems, []);
  });
}
