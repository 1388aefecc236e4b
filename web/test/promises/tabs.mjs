// The tabs: the address chooses the task, keys move, and a model that is left is freed.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOAD_MS, RUN_MS } from '../page.mjs';
import { generate } from './write.mjs';

const selected = (page) =>
  page.page.$$eval('[role="tab"]', (tabs) => tabs.filter((tab) => tab.ariaSelected === 'true').map((tab) => tab.id));

export function switches(opened) {
  test('follows the address, the arrow keys and Enter', { timeout: 3 * LOAD_MS }, async () => {
    const page = opened();
    await page.open('see');
    assert.deepEqual(await selected(page), ['tab-see']);
    assert.equal(await page.page.evaluate(() => location.hash), '#see');
    await page.click('tab-see');
    await page.page.keyboard.press('ArrowLeft');
    assert.equal(await page.focused(), 'tab-fill');
    assert.deepEqual(await selected(page), ['tab-see']);
    await page.page.keyboard.press('Enter');
    await page.until('the fill tab', () => selected(page), (tabs) => String(tabs) === 'tab-fill', 5_000);
    await page.reach('ready', LOAD_MS);
    await page.page.goBack();
    await page.until('the see tab', () => selected(page), (tabs) => String(tabs) === 'tab-see', 5_000);
    await page.reach('ready', LOAD_MS);
    assert.ok(!(await page.visible('panel-fill')));
  });

  test('leaves a run for another task, and comes back', { timeout: 3 * LOAD_MS + RUN_MS }, async () => {
    const page = opened();
    await page.open('write');
    await generate(page, 200);
    await page.status('generating', 5_000);
    await page.open('fill');
    await page.run('fill');
    await page.open('write');
    await generate(page, 3);
    await page.reach('done', RUN_MS);
    assert.deepEqual(page.problems, []);
  });
}

/** Bytes of GPU buffers that are alive, of those that the worker makes from now on. */
const countBuffers = (worker) =>
  worker.evaluate(() => {
    globalThis.liveBytes = 0;
    const { createBuffer } = GPUDevice.prototype;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      const buffer = createBuffer.call(this, descriptor);
      let bytes = descriptor.size;
      globalThis.liveBytes += bytes;
      buffer.destroy = () => {
        globalThis.liveBytes -= bytes;
        bytes = 0;
        GPUBuffer.prototype.destroy.call(buffer);
      };
      return buffer;
    };
  });

/** Where the driver can look into the worker. */
export function frees(opened) {
  test('frees the model that it leaves, and loads it again', { timeout: 4 * LOAD_MS }, async () => {
    const page = opened();
    await page.open('translate');
    const [worker] = page.page.workers();
    await countBuffers(worker);
    const alive = async (task) => {
      await page.open(task);
      return worker.evaluate(() => globalThis.liveBytes);
    };
    const fill = await alive('fill');
    const see = await alive('see');
    assert.ok(see > 100_000 && fill > 1_000_000, `alive: ${fill} bytes, then ${see}`);
    assert.equal(await alive('fill'), fill);
    assert.equal(await alive('see'), see);
    await page.click('[data-example="bag"]');
    await page.reach('done', RUN_MS);
  });
}
