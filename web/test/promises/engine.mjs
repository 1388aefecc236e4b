// The engine without the page: which kernels run in this browser, and that all shapes compute the same.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { LOAD_MS, RUN_MS, tensor } from '../page.mjs';
import { artefact, modelJson, required, serve, web } from '../support.mjs';
import { PROMPT } from './write.mjs';

const NEW_TOKENS = 12;
/** Tokens after which decoding has all of its buffers: there are four steps in flight. */
const UNDER_WAY = 5;

/** Loads the prose model with `options` and writes; runs in the browser. */
async function write([base, options, prompt, count]) {
  const own = GPUAdapter.prototype.requestDevice;
  const { default: init, Engine } = await import(`${base}pkg/headwise.js`);
  await init();
  const engine = await Engine.load(`${base}public/models/prose/`, options, () => {});

  const counted = { readBuffers: 0, emptySubmissions: 0 };
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    if (descriptor.usage & GPUBufferUsage.MAP_READ) counted.readBuffers++;
    return createBuffer.call(this, descriptor);
  };
  const { submit } = GPUQueue.prototype;
  GPUQueue.prototype.submit = function (buffers) {
    if (buffers.length === 0) counted.emptySubmissions++;
    return submit.call(this, buffers);
  };
  const tokens = [];
  try {
    const options = { max_new: count, sampling: { temperature: 0 } };
    await engine.generate(prompt, JSON.stringify(options), (json) => {
      tokens.push({ ...JSON.parse(json), readBuffers: counted.readBuffers });
      return true;
    });
  } finally {
    GPUDevice.prototype.createBuffer = createBuffer;
    GPUQueue.prototype.submit = submit;
  }
  const info = JSON.parse(engine.info());
  engine.free();
  return { info, tokens, counted, restored: GPUAdapter.prototype.requestDevice === own };
}

/** The attention experts of each token, `[token][layer]`, as sorted lists: what the native engine chooses. */
function nativeHeads(ids, layers, browser) {
  const binary = required('HEADWISE_BIN', 'the native headwise binary');
  const file = artefact(`${browser}-engine.safetensors`);
  execFileSync(binary, ['logits', '--quiet', '--ids', ids.join(), '--out', file], { timeout: RUN_MS });
  const bytes = readFileSync(file);
  const experts = Array.from({ length: layers }, (_, layer) => tensor(bytes, `layers.${layer}.attention.experts`));
  return ids.map((_, token) =>
    experts.map(({ shape: [, k], values }) => [...values.slice(token * k, (token + 1) * k)].sort((a, b) => a - b)));
}

const all = (variant) => ({ routed_matmul: variant, routed_matvec: variant, row_attention: variant });

/** What runs by the `kernels` that are asked for. */
const EXPECTED = {
  chromium: {
    subgroups: [4, 4],
    kernels: {
      tuned: all('broadcast'),
      broadcast: all('broadcast'),
      plain: { ...all('plain'), row_attention: 'workgroup' },
      workgroup: all('workgroup'),
      subgroup: { ...all('workgroup'), routed_matvec: 'subgroup' },
    },
  },
  firefox: {
    subgroups: null,
    kernels: {
      tuned: { ...all('plain'), row_attention: 'workgroup' },
      auto: { ...all('plain'), row_attention: 'workgroup' },
      broadcast: { ...all('plain'), row_attention: 'workgroup' },
      workgroup: all('workgroup'),
      subgroup: all('workgroup'),
    },
  },
};

/** `open` gives an empty browser page. */
export function runs(open, browser) {
  let server;
  let page;
  before(async () => {
    server = await serve(web);
    page = await open();
    await page.goto(`${server.url}test/engine.html`);
  });
  after(async () => {
    await page?.close();
    await server?.close();
  });
  const { subgroups, kernels } = EXPECTED[browser];

  for (const [asked, running] of Object.entries(kernels)) {
    test(`writes as the native engine does with ${asked} kernels`, { timeout: LOAD_MS + RUN_MS }, async () => {
      const options = JSON.stringify({ kernels: asked });
      const { info, tokens, counted, restored } = await page.evaluate(write, [server.url, options, PROMPT, NEW_TOKENS]);
      assert.deepEqual(info.subgroups, subgroups);
      assert.deepEqual(info.kernels, running);
      assert.ok(restored, 'requestDevice is not the browser’s own any more');

      const fresh = tokens.filter(({ prompt }) => !prompt);
      const { greedy } = modelJson('prose', 'reference.json').prompts.find(({ text }) => text === PROMPT);
      assert.equal(fresh.length, NEW_TOKENS);
      const text = fresh.map(({ text }) => text).join('');
      assert.ok(greedy.startsWith(text), `${JSON.stringify(text)} is no start of the reference's`);
      const heads = tokens.map(({ heads }) => heads.map((slots) => slots.toSorted((a, b) => a - b)));
      assert.deepEqual(heads, nativeHeads(tokens.map(({ id }) => id), info.layers, browser));

      const readBuffers = fresh.slice(UNDER_WAY).map(({ readBuffers }) => readBuffers);
      assert.equal(new Set(readBuffers).size, 1, `buffers for readbacks, token by token: ${readBuffers}`);
      assert.equal(counted.emptySubmissions > 0, browser === 'firefox', `${counted.emptySubmissions} empty submissions`);
    });
  }

  test('runs the kernels that it remembers, and remembers them', { timeout: 2 * LOAD_MS }, async () => {
    const info = async (options) => (await page.evaluate(write, [server.url, JSON.stringify(options), PROMPT, 1])).info;
    const note = await info({}).then(({ remembered }) => JSON.parse(remembered));
    // Not what was measured, in a browser that has a choice; with all the time that it took.
    const remembered = JSON.stringify({ ...note, matvec: 'plain', measured: 'fully' });
    const again = await info({ remembered });
    assert.equal(again.remembered, remembered);
    assert.equal(again.kernels.routed_matvec, 'plain');
    assert.equal((await info({ kernels: 'tuned', remembered })).remembered, null);
    // What ran out of time is measured once more.
    const second = await info({ remembered: JSON.stringify({ ...note, measured: 'partly' }) });
    assert.equal(JSON.parse(second.remembered).measured, 'fully');
    assert.equal(JSON.parse((await info({ remembered: 'nonsense' })).remembered).adapter, note.adapter);
  });

  test('says how likely tokens are, as the native engine does', { timeout: LOAD_MS + RUN_MS }, async () => {
    const ask = async ([base, text]) => {
      const { Engine } = await import(`${base}pkg/headwise.js`);
      const engine = await Engine.load(`${base}public/models/prose/`, '{"kernels":"tuned"}', () => {});
      const tokens = [];
      const options = { max_new: 4, sampling: { temperature: 0 }, logprobs: 2 };
      const push = (json) => tokens.push(JSON.parse(json)) > 0;
      const { text: more } = JSON.parse(await engine.generate(text, JSON.stringify(options), push));
      const [scored] = JSON.parse(await engine.score(JSON.stringify([text + more]), '{}'));
      engine.free();
      return { tokens, text: text + more, scored };
    };
    const { tokens, text, scored } = await page.evaluate(ask, [server.url, PROMPT]);
    const binary = required('HEADWISE_BIN', 'the native headwise binary');
    const [lines, out] = [`${browser}-texts.jsonl`, `${browser}-scores.jsonl`].map(artefact);
    writeFileSync(lines, JSON.stringify({ text }));
    rmSync(out, { force: true });
    execFileSync(binary, ['score', lines, '--quiet', '--tokens', '--out', out], { timeout: RUN_MS });
    const { ids, logprobs } = JSON.parse(readFileSync(out, 'utf8'));
    assert.deepEqual(scored.ids, ids);
    const near = (found, expected) => assert.ok(Math.abs(found - expected) < 1e-3, `found ${found}, expected ${expected}`);
    scored.logprobs.forEach((logprob, at) => near(logprob, logprobs[at]));
    tokens.forEach(({ prompt, id, logprob, top }, at) => {
      if (prompt) return assert.equal(logprob, undefined);
      near(logprob, logprobs[at - 1]);
      assert.deepEqual([top.length, top[0].id, top[0].logprob], [2, id, logprob]);
    });
  });

  test('refuses kernels that there are not', { timeout: LOAD_MS }, async () => {
    const load = async ([base, options]) => {
      const { Engine } = await import(`${base}pkg/headwise.js`);
      return Engine.load(`${base}public/models/prose/`, options, () => {}).then(String, ({ message }) => message);
    };
    const message = await page.evaluate(load, [server.url, '{"kernels":"fast"}']);
    assert.match(message, /^options: .*unknown variant `fast`/);
  });
}
