// The page in headless Chromium (Tint, SwiftShader); how it starts is in chromium_start.test.mjs, to run beside this.
// Needs the built page (scripts/web) and HEADWISE_BIN, a native `headwise` to compare with.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { chromium } from './chromium.mjs';
import { LOAD_MS, RUN_MS } from './page.mjs';
import { promises, serves } from './promises/all.mjs';
import { remembers } from './promises/memory.mjs';
import { frees } from './promises/tabs.mjs';
import { generate } from './promises/write.mjs';

const server = serves();

describe('page in Chromium', () => {
  const { visit } = chromium();
  const open = (query = '?kernels=tuned') => visit(server().url + query);
  remembers(() => open(''));
  const opened = promises(open, 'chromium');
  frees(opened);

  test('asks the host for nothing that is not there', () => assert.deepEqual(server().missing, []));

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
