// Writing: the same text as the native command, in colours, stopped at will.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { RUN_MS } from '../page.mjs';
import { artefact, modelJson, required } from '../support.mjs';

const NEW_TOKENS = 24;
export const PROMPT = 'It is a truth universally acknowledged, that';

/** What the native engine writes after the prompt. */
function nativeText(prompt) {
  const binary = required('HEADWISE_BIN', 'the native headwise binary');
  const args = ['generate', '--greedy', '--max-new', String(NEW_TOKENS), prompt];
  const text = execFileSync(binary, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], timeout: RUN_MS });
  return (text.startsWith(prompt) ? text.slice(prompt.length) : text).replace(/\n$/, '');
}

const fresh = (tokens) => tokens.filter(({ kind }) => kind !== 'prompt');

export async function generate(page, maxNew) {
  await page.type('panel-write/prompt', PROMPT);
  await page.type('panel-write/max-new', String(maxNew));
  await page.check('panel-write/greedy', true);
  await page.click('panel-write/run');
}

export function writes(opened, browser) {
  test('writes the same text as the native engine', { timeout: RUN_MS + 10_000 }, async () => {
    const page = opened();
    const native = nativeText(PROMPT);
    const { greedy } = modelJson('prose', 'reference.json').prompts.find(({ text }) => text === PROMPT);
    assert.notEqual(native, '');
    assert.ok(greedy.startsWith(native), `native text ${JSON.stringify(native)} is no start of the reference's`);

    await generate(page, NEW_TOKENS);
    await page.reach('done', RUN_MS);
    assert.equal(fresh(await page.tokens('panel-write')).map(({ text }) => text).join(''), native);
    assert.equal(await page.text('panel-write/output'), PROMPT + native);
    assert.match(await page.text('panel-write/speed'), /prefill [\d.]+ tokens\/s .*decode [\d.]+ tokens\/s/);
    await page.page.screenshot({ path: artefact(`${browser}.png`), fullPage: true });
  });

  test('colours what it wrote by the chosen layer', () => opened().checkColours('panel-write'));

  test('stops in the middle of a run, then runs again', { timeout: 2 * RUN_MS }, async () => {
    const page = opened();
    await generate(page, 200);
    const written = async () => fresh(await page.tokens('panel-write')).length;
    await page.until('five new tokens', written, (count) => count >= 5, RUN_MS);
    assert.equal(await page.text('status'), 'generating');
    await page.click('panel-write/stop');
    await page.reach('done', 10_000);
    assert.match(await page.text('panel-write/speed'), /stopped/);
    assert.ok((await written()) < 200, 'all tokens were written');

    await generate(page, 3);
    await page.reach('done', RUN_MS);
    assert.equal(await written(), 3);
    assert.deepEqual(page.problems, []);
  });
}
