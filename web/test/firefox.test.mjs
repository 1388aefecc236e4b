// The page in headless Firefox (naga, lavapipe).
// Needs the built page (scripts/web) and HEADWISE_BIN, a native `headwise` to compare with.
import { after, before, describe } from 'node:test';
import { Page } from './page.mjs';
import { misses, promises, serves } from './promises/all.mjs';
import { runs } from './promises/engine.mjs';
import { remembers } from './promises/memory.mjs';
import { finds, tests } from './promises/selftest.mjs';
import { starts } from './promises/start.mjs';
import { FIREFOX_WEBGPU, launchFirefox } from './support.mjs';

const server = serves();

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
  const open = (query = '?kernels=tuned') => visit(server().url + query);
  runs(() => browser.newPage(), 'firefox');
  starts(visit, 'firefox');
  remembers(() => open(''));
  promises(open, 'firefox');
  finds(() => browser.newPage());
  tests(open, 'firefox');
});

const withoutWasm = { ...FIREFOX_WEBGPU, 'javascript.options.wasm': false };
misses(server, 'no-wasm', () => launchFirefox(withoutWasm), /has no WebAssembly/);
misses(server, 'no-webgpu', () => launchFirefox({ 'dom.webgpu.enabled': false }), /has no WebGPU/);
