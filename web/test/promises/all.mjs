// What the page promises in every browser.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { LOAD_MS, Page } from '../page.mjs';
import { artefact, dist, serve } from '../support.mjs';
import { fills } from './fill.mjs';
import { reaches } from './reach.mjs';
import { sees } from './see.mjs';
import { switches } from './tabs.mjs';
import { translates } from './translate.mjs';
import { writes } from './write.mjs';

/** Serves the built page to the tests of a file; gives the server once they run. */
export function serves() {
  let server;
  before(async () => {
    if (!existsSync(join(dist, 'index.html'))) throw new Error(`there is no ${dist}/index.html: run scripts/web`);
    server = await serve(dist);
  });
  after(() => server?.close());
  return () => server;
}

/** `open` gives a loaded, empty browser page. */
export function promises(open, browser) {
  let page;
  const opened = () => page;

  test('loads the model and names the adapter', { timeout: LOAD_MS + 10_000 }, async () => {
    page = await open();
    await page.reach('ready', LOAD_MS);
    assert.match(await page.text('adapter'), browser === 'chromium' ? / · subgroups of 4$/ : /software$/);
    assert.ok(await page.enabled('panel-write/run'));
    assert.ok(!(await page.enabled('panel-write/stop')));
    const loaded = await page.page.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name));
    assert.deepEqual(loaded.filter((name) => /selftest/.test(name)), [], 'what only the selftest needs');
    assert.ok(!(await page.visible('selftest')));
  });

  writes(opened, browser);
  translates(opened, browser);
  fills(opened, browser);
  sees(opened, browser);
  switches(opened);
  reaches(opened, browser);
  return opened;
}

/** In a browser that lacks something, the page says what, and offers nothing that needs it. */
export function misses(server, name, launch, said) {
  test(`page says so: ${name}`, { timeout: 60_000 }, async () => {
    const browser = await launch();
    try {
      const page = new Page(await browser.newPage());
      await page.page.goto(server().url);
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
