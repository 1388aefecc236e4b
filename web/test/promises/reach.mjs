// Every control is reached, by pointer and by keyboard, at every width; experts are told without colours, too.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CONTROLS, LOAD_MS, Page, RUN_MS } from '../page.mjs';
import { artefact } from '../support.mjs';

const TASKS = ['see', 'fill', 'translate', 'write'];
/** Half a phone, as at a zoom of 200 per cent; phones; a tablet; a desktop. */
const WIDTHS = [180, 320, 360, 768, 1280];

const resize = ({ page }, size) => page.setViewportSize?.(size) ?? page.setViewport(size);

/** Runs in the browser: by name what Tab should find, in this order; or what has the focus, and whether that shows. */
function focusable(controls) {
  const all = controls.filter((control) => control.tabIndex >= 0 && control.checkVisibility());
  const unseen = (control) => control === document.activeElement && getComputedStyle(control).outlineStyle === 'none';
  return all.map((control) => `${control.dataset.testid ?? control.textContent}${unseen(control) ? ', unseen' : ''}`);
}

/** Presses Tab until a part has the focus. */
async function tabTo(page, name) {
  for (let press = 0; press < 20; press++) {
    if ((await page.focused()) === name) return;
    await page.page.keyboard.press('Tab');
  }
  assert.fail(`Tab does not come to ${name}`);
}

export function reaches(opened, browser) {
  test('meets the pointer everywhere at every width, and has the focus in turn', { timeout: 4 * LOAD_MS }, async () => {
    const page = opened();
    for (const task of TASKS) {
      await page.open(task);
      for (const width of WIDTHS) {
        await resize(page, { width, height: 740 });
        await page.meetsAll();
        const wide = await page.page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(wide <= width, `${task} is ${wide} pixels wide in a window of ${width}`);
        if (width === 360) await page.page.screenshot({ path: artefact(`${browser}-${task}-360.png`), fullPage: true });
      }
      await page.click('main h1');
      const expected = await page.page.$$eval(CONTROLS, focusable);
      const found = [];
      for (const _ of expected) {
        await page.page.keyboard.press('Tab');
        found.push(...(await page.page.$$eval(':focus', focusable)));
      }
      assert.deepEqual(found, expected);
    }
    await resize(page, { width: 900, height: 900 });
  });

  test('keeps the place of who works by keyboard', { timeout: 2 * RUN_MS }, async () => {
    const page = opened();
    const { keyboard } = page.page;
    await page.open('write');
    await page.type('panel-write/max-new', '200');
    await tabTo(page, 'run');
    await keyboard.press('Enter');
    await page.status('generating', 5_000);
    await tabTo(page, 'stop');
    await keyboard.press('Enter');
    await page.reach('done', RUN_MS);
    assert.equal(await page.focused(), 'run');
    await page.type('panel-write/max-new', '40');
    await tabTo(page, 'run');
    for (const _ of [1, 2]) {
      await keyboard.press('Enter');
      await page.status('generating', 5_000);
      await page.reach('done', RUN_MS);
      assert.equal(await page.focused(), 'run');
    }
  });

  test('works once for two clicks', { timeout: LOAD_MS + RUN_MS }, async () => {
    const page = opened();
    await page.open('fill');
    const { x, y } = await page.point('panel-fill/run');
    await page.page.mouse.click(x, y, { count: 2, clickCount: 2 });
    await page.reach('done', RUN_MS);
    assert.deepEqual(page.problems, []);
  });

  if (browser !== 'chromium') return;
  test('tells experts by number where colours are the reader’s', { timeout: 2 * LOAD_MS + RUN_MS }, async () => {
    const page = opened();
    await page.page.emulateMedia({ forcedColors: 'active' });
    for (const [task, active] of [['see', 4], ['fill', 3]]) {
      await page.open(task);
      const layer = await page.page.$eval(Page.id(`panel-${task}/layer`), (list) => list.selectedOptions[0].text);
      const tokens = await page.page.$$eval(`${Page.id(`panel-${task}/output`)} > span`, (spans) =>
        spans.map((span) => ({ title: span.title, content: getComputedStyle(span, '::after').content })),
      );
      assert.ok(tokens.length > 1);
      for (const { title, content } of tokens) {
        const heads = title.split('\n').find((line) => line.startsWith(`${layer}: head experts `));
        assert.deepEqual(content.match(/\d+/g), heads.slice(layer.length).match(/\d+/g));
        assert.equal(content.match(/\d+/g).length, active);
      }
      assert.ok(await page.visible(`panel-${task}/.by-number`));
      await page.meetsAll();
      await page.page.screenshot({ path: artefact(`${browser}-${task}-forced-colours.png`), fullPage: true });
    }
    await page.page.emulateMedia({ forcedColors: 'none' });
  });
}
