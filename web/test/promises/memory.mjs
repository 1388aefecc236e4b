// The choice of kernels stays from one visit to the next.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOAD_MS } from '../page.mjs';

/** `open` gives a browser page that measures its kernels. */
export function remembers(open) {
  test('keeps the choice of kernels for the next visit', { timeout: 2 * LOAD_MS }, async () => {
    const opened = await open();
    const { page } = opened;
    await opened.reach('ready', LOAD_MS);
    const kept = () => page.evaluate(() => localStorage.getItem('headwise.kernels'));
    // Not what was measured, in a browser that has a choice: a page that measures again would not run it. With all the time
    // that it took, or the page would.
    const note = JSON.stringify({ ...JSON.parse(await kept()), matvec: 'plain', measured: 'fully' });
    await page.evaluate((note) => localStorage.setItem('headwise.kernels', note), note);
    await page.reload();
    await opened.reach('ready', LOAD_MS);
    assert.match(await page.$eval('[data-testid="adapter"]', ({ title }) => title), /^routed_matvec: plain$/m);
    assert.equal(await kept(), note);
    await page.close();
  });
}
