// How engine and page start in headless Chromium (Tint, SwiftShader), or say why they do not.
// Needs what chromium.test.mjs does.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { chromium } from './chromium.mjs';
import { misses, serves } from './promises/all.mjs';
import { runs } from './promises/engine.mjs';
import { finds, tests } from './promises/selftest.mjs';
import { starts } from './promises/start.mjs';
import { launchChromium } from './support.mjs';

const server = serves();

describe('page in Chromium', () => {
  const { browser, visit } = chromium();
  runs(() => browser().newPage(), 'chromium');
  starts(visit, 'chromium');
  finds(() => browser().newPage());
  tests((query) => visit(server().url + query), 'chromium');
});

misses(server, 'no-adapter', () => launchChromium([]), /no GPU adapter/);

test('page without JavaScript says so', { timeout: 60_000 }, async () => {
  const browser = await launchChromium();
  try {
    const page = await browser.newPage({ javaScriptEnabled: false });
    await page.goto(server().url);
    const text = await page.innerText('body');
    assert.match(text, /needs JavaScript/);
    assert.doesNotMatch(text, /loading|Generate/);
  } finally {
    await browser.close();
  }
});
