// Where the page or its engine cannot start, it says why.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { LOAD_MS } from '../page.mjs';
import { artefact, dist, serve } from '../support.mjs';

const page404 = { type: 'text/html', body: '<!doctype html>' };

/** Files of the page that a host gives wrongly, and what the page says then. */
const FAULTS = {
  'no program': [/index-.*js$/, { status: 404 }, /host has no http.*index-.*\.js, or does not send it as JavaScript/],
  'a program of another type': [/index-.*js$/, { body: '0' }, /host has no http.*index-.*\.js, or does not send it as JavaScript/],
  'a program that is none': [/index-.*js$/, { type: 'text/javascript', body: '1 +' }, /cannot run the page’s program: .*SyntaxError/],
  'no worker': [/worker-.*js$/, { status: 404 }, /engine could not start: http.*worker-.*\.js could not be loaded/],
  'a page for a worker': [/worker-.*js$/, page404, /engine could not start: http.*worker-.*\.js could not be loaded/],
  'no wasm': [/wasm$/, { status: 404 }, /could not be loaded: http.*\.wasm: HTTP 404/],
  'a page for wasm': [/wasm$/, page404, /could not be loaded: http.*\.wasm: found a page, expected WebAssembly/],
  'a short wasm': [/wasm$/, { type: 'application/wasm', body: '\0asm' }, /could not be loaded: http.*\.wasm: /],
  'no model': [/config\.json$/, { status: 404 }, /could not be loaded: http.*config\.json/],
  'a broken model': [/config\.json$/, { body: '{' }, /could not be loaded: .*config\.json/],
  'a short model': [/model\.safetensors$/, { body: 'abc' }, /could not be loaded: .*model\.safetensors/],
};

/** `open(url)` gives a browser page. */
export function starts(open, browser) {
  let server;
  let fault;
  before(async () => {
    server = await serve(dist, (path) => (fault?.[0].test(path) ? fault[1] : undefined));
  });
  after(() => server?.close());

  const says = async (url, wanted) => {
    const page = await open(url);
    await page.until('a message', () => page.text('message-text'), (text) => wanted.test(text), LOAD_MS);
    assert.ok(await page.visible('message'));
    return page;
  };

  for (const [name, [file, answer, wanted]] of Object.entries(FAULTS)) {
    test(`says what is wrong: ${name}`, { timeout: LOAD_MS }, async () => {
      fault = [file, answer];
      const page = await says(`${server.url}?kernels=tuned`, wanted);
      fault = undefined;
      if (name === 'no wasm') {
        await page.click('reload');
        await page.reach('ready', LOAD_MS);
      }
      await page.page.close();
    });
  }

  test('says how to serve it where it is opened as a file', { timeout: 60_000 }, async () => {
    const page = await says(pathToFileURL(join(dist, 'index.html')).href, /opened as a file.*python3 -m http\.server/);
    await page.page.screenshot({ path: artefact(`${browser}-file.png`) });
    assert.ok(!(await page.visible('tab-write')));
    await page.page.close();
  });

  test('runs with wasm of another type', { timeout: LOAD_MS }, async () => {
    const wasm = readdirSync(join(dist, 'assets')).find((name) => name.endsWith('.wasm'));
    fault = [/\.wasm$/, { type: 'application/octet-stream', body: readFileSync(join(dist, 'assets', wasm)) }];
    const page = await open(`${server.url}?kernels=tuned#see`);
    await page.reach('ready', LOAD_MS);
    fault = undefined;
    await page.page.close();
  });

  test('takes no program from the host that an address of two slashes names', { timeout: 60_000 }, async () => {
    fault = [/^/, { type: 'text/html', body: readFileSync(join(dist, 'index.html')) }];
    const { origin } = new URL(server.url);
    const page = await says(`${origin}//elsewhere.invalid/page`, /host has no http:\/\/127\.0\.0\.1:\d+\/\/elsewhere\.invalid\/page\/assets/);
    fault = undefined;
    await page.page.close();
  });

  test('runs at the address of its folder without the last slash', { timeout: LOAD_MS }, async () => {
    const page = await open(`${server.url.slice(0, -1)}?kernels=tuned#see`);
    await page.reach('ready', LOAD_MS);
    assert.ok(await page.page.$eval('[data-example] img', (image) => image.decode().then(() => image.naturalWidth === 28)));
    await page.page.close();
  });
}
