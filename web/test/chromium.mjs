// A Chromium for the tests of a suite.
import { after, before } from 'node:test';
import { Page } from './page.mjs';
import { launchChromium } from './support.mjs';

/** Gives the browser, and what opens an address in a page of it, once tests run. */
export function chromium() {
  let browser;
  before(async () => { browser = await launchChromium(); });
  after(() => browser?.close());

  const visit = async (url) => {
    const page = await browser.newPage({ reducedMotion: 'reduce', viewport: { width: 900, height: 900 } });
    const opened = new Page(page);
    await page.goto(url);
    return opened;
  };
  return { browser: () => browser, visit };
}
