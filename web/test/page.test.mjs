// The page in headless Chromium (Tint, SwiftShader) and headless Firefox (naga, lavapipe).
// Needs the built page (scripts/web) and HEADWISE_BIN, a native `headwise` to compare with.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { LOAD_MS, Page, RUN_MS } from './page.mjs';
import { runs } from './promises/engine.mjs';
import { fills } from './promises/fill.mjs';
import { remembers } from './promises/memory.mjs';
import { reaches } from './promises/reach.mjs';
import { sees } from './promises/see.mjs';
import { starts } from './promises/start.mjs';
import { frees, switches } from './promises/tabs.mjs';
import { translates } from './promises/translate.mjs';
import { generate, writes } from './promises/write.mjs';
import { FIREFOX_WEBGPU, artefact, dist, launchChromium, launchFirefox, serve } from './support.mjs';

let server;
before(async () => {
  if (!existsSync(join(dist, 'index.html'))) throw new Error(`there is no ${dist}/index.html: run scripts/web`);
  server = await serve(dist);
});
after(() => server?.close());

/** What the page promises in every browser; `open` gives a loaded, empty browser page. */
function promises(open, browser) {
  let page;
  const opened = () => page;

  test('loads the model and names the adapter', { timeout: LOAD_MS + 10_000 }, async () => {
    page = await open();
    await page.reach('ready', LOAD_MS);
    assert.match(await page.text('adapter'), browser === 'chromium' ? / · subgroups of 4$/ : /software$/);
    assert.ok(await page.enabled('panel-write/run'));
    assert.ok(!(await page.enabled('panel-write/stop')));
  });

  writes(opened, browser);
  translates(opened, browser);
  fills(opened, browser);
  sees(opened, browser);
  switches(opened);
  reaches(opened, browser);
  return opened;
}

describe('page in Chromium', () => {
  let browser;
  before(async () => { browser = await launchChromium(); });
  after(() => browser?.close());

  const visit = async (url) => {
    const page = await browser.newPage({ reducedMotion: 'reduce', viewport: { width: 900, height: 900 } });
    const opened = new Page(page);
    await page.goto(url);
    return opened;
  };
  const open = (query = '?kernels=tuned') => visit(server.url + query);
  runs(() => browser.newPage(), 'chromium');
  starts(visit, 'chromium');
  remembers(() => open(''));
  const opened = promises(open, 'chromium');
  frees(opened);

  test('asks the host for nothing that is not there', () => assert.deepEqual(server.missing, []));

  test('offers a reload when the worker dies, and recovers', { timeout: LOAD_MS }, async () => {
    const page = opened();
    await page.open('write');
    await page.page.workers()[0].evaluate(() => { setTimeout(() => { throw new Error('killed by the test'); }); });
    await page.status('failed', 10_000);
    assert.match(await page.text('message-text'), /killed by the test/);
    assert.ok(!(await page.enabled('panel-write/run')));
    await page.click('reload');
    await page.reach('ready', LOAD_MS);
    await generate(page, 3);
    await page.reach('done', RUN_MS);
  });
});

describe('page without what it needs', () => {
  for (const [name, launch, said] of [
    ['no-adapter', () => launchChromium([]), /no GPU adapter/],
    ['no-wasm', () => launchFirefox({ ...FIREFOX_WEBGPU, 'javascript.options.wasm': false }), /has no WebAssembly/],
    ['no-webgpu', () => launchFirefox({ 'dom.webgpu.enabled': false }), /has no WebGPU/],
  ]) {
    test(`says so: ${name}`, { timeout: 60_000 }, async () => {
      const browser = await launch();
      try {
        const page = new Page(await browser.newPage());
        await page.page.goto(server.url);
        await page.status('unsupported', 30_000);
        assert.match(await page.text('message-text'), said);
        assert.ok(!(await page.enabled('panel-write/run')));
        await page.click('tab-fill');
        await page.until('the other panel', () => page.visible('panel-fill'), Boolean, 5_000);
        assert.ok(!(await page.enabled('panel-fill/run')));
        assert.match(await page.text('message-text'), said);
        await page.page.screenshot({ path: artefact(`${name}.png`), fullPage: true });
      } finally {
        await browser.close();
      }
    });
  }
});

test('page without JavaScript says so', { timeout: 60_000 }, async () => {
  const browser = await launchChromium();
  try {
    const page = await browser.newPage({ javaScriptEnabled: false });
    await page.goto(server.url);
    const text = await page.innerText('body');
    assert.match(text, /needs JavaScript/);
    assert.doesNotMatch(text, /loading|Generate/);
  } finally {
    await browser.close();
  }
});

describe('page in Firefox', () => {
  let browser;
  before(async () => { browser = await launchFirefox(); });
  after(() => browser?.close());

  const visit = async (url) => {
    const page = await browser.newPage();
    const opened = new Page(page);
    await page.setViewport({ width: 900, height: 900 });
    await page.goto(url);
    return opened;
  };
  const open = (query = '?kernels=tuned') => visit(server.url + query);
  runs(() => browser.newPage(), 'firefox');
  starts(visit, 'firefox');
  remembers(() => open(''));
  promises(open, 'firefox');
});
