// Seeing: the reference's labels and probabilities.
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { LOAD_MS, Page, RUN_MS, assertClose, tensor } from '../page.mjs';
import { artefact, modelFile, modelJson } from '../support.mjs';

const { id2label, image_size: side, patch_size: patch } = modelJson('fashion', 'config.json');
const { examples } = modelJson('fashion', 'reference.json');
const bytes = modelFile('fashion', 'reference.safetensors');

/** A grey image as a BMP file: 24 bits a pixel, the lowest row first. */
function bmp(grey, side) {
  const header = Buffer.alloc(54);
  header.write('BM');
  header.writeUInt32LE(54 + 3 * grey.length, 2);
  header.writeUInt32LE(54, 10);
  header.writeUInt32LE(40, 14);
  header.writeInt32LE(side, 18);
  header.writeInt32LE(side, 22);
  header.writeUInt16LE(1, 26);
  header.writeUInt16LE(24, 28);
  assert.equal((3 * side) % 4, 0);
  const rows = Array.from({ length: side }, (_, row) => [...grey.subarray(row * side, (row + 1) * side)]);
  return Buffer.concat([header, Buffer.from(rows.reverse().flat().flatMap((value) => [value, value, value]))]);
}

/** The five likeliest of a row of logits. */
function top(logits) {
  const weights = [...logits].map(Math.exp);
  const sum = weights.reduce((a, b) => a + b);
  const classes = weights.map((weight, id) => ({ id, probability: weight / sum }));
  return classes.sort((a, b) => b.probability - a.probability).slice(0, 5);
}

/** The path of a file made of these bytes. */
function file(name, bytes) {
  const path = artefact(name);
  writeFileSync(path, bytes);
  return path;
}

const PICTURE = 'panel-see/picture';

/** How bright the picture is, by shares of its width and height. */
const brightness = (page, [x, y]) =>
  page.page.$eval(
    Page.id(PICTURE),
    (canvas, [x, y]) => canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data[0],
    [x, y],
  );

/** Strokes across the picture, corner to corner, with a mouse, a finger or a pen. */
const STROKES = {
  async mouse({ page }, [from, to], button = 'left') {
    await page.mouse.move(from.x, from.y);
    await page.mouse.down({ button });
    await page.mouse.move(to.x, to.y);
    await page.mouse.up({ button });
  },
  async finger({ page }, [from, to]) {
    if (page.touchscreen.touchStart) {
      const touch = await page.touchscreen.touchStart(from.x, from.y);
      await touch.move(to.x, to.y);
      return touch.end();
    }
    const driver = await page.context().newCDPSession(page);
    const touch = (type, ...touchPoints) => driver.send('Input.dispatchTouchEvent', { type, touchPoints });
    await touch('touchStart', from);
    await touch('touchMove', to);
    await touch('touchEnd');
  },
  async pen({ page }, [from, to]) {
    const driver = await page.context().newCDPSession(page);
    const pen = (type, { x, y }, buttons) =>
      driver.send('Input.dispatchMouseEvent', { type, x, y, button: 'left', buttons, pointerType: 'pen', clickCount: 1 });
    await pen('mousePressed', from, 1);
    await pen('mouseMoved', to, 1);
    await pen('mouseReleased', to, 0);
  },
};

/** Lets a file fall on a part of the page. Chromium alone has an input of this kind. */
async function drop({ page }, { x, y }, file) {
  const driver = await page.context().newCDPSession(page);
  const data = { items: [], files: [file], dragOperationsMask: 1 };
  for (const type of ['dragEnter', 'dragOver', 'drop']) await driver.send('Input.dispatchDragEvent', { type, x, y, data });
}

export function sees(opened, browser) {
  /** Waits for other bars than those before. */
  const seen = async (act) => {
    const page = opened();
    const bars = () => page.bars('panel-see/classes');
    const before = JSON.stringify(await bars());
    await act();
    const found = await page.until('other bars', bars, (now) => JSON.stringify(now) !== before, RUN_MS);
    await page.reach('done', RUN_MS);
    return found;
  };

  test('takes the first click', { timeout: LOAD_MS + RUN_MS }, async () => {
    const page = opened();
    await page.open('see');
    await page.meetsAll();
    await seen(() => page.click('panel-see/run'));
  });

  test('names its examples', { timeout: 3 * RUN_MS }, async () => {
    const page = opened();
    const names = await page.page.$$eval('[data-testid="panel-see"] [data-example]', (all) => all.map((one) => one.dataset.example));
    assert.deepEqual(names.map((name) => `${name}.png`).sort(), Object.keys(examples).sort());
    for (const name of names) {
      const [{ label }] = await seen(() => page.click(`panel-see/[data-example="${name}"]`));
      assert.equal(label, id2label[examples[`${name}.png`].label], name);
    }
    await page.page.screenshot({ path: artefact(`${browser}-see.png`), fullPage: true });
  });

  test('colours the patches by the chosen layer', async () => {
    assert.equal((await opened().tokens('panel-see')).length, 1 + (side / patch) ** 2);
    await opened().checkColours('panel-see', 1); // the class token lies on no picture
  });

  test('classifies a file as the reference does', { timeout: 2 * RUN_MS }, async () => {
    const images = tensor(bytes, 'images');
    const logits = tensor(bytes, 'logits');
    const classes = logits.shape[1];
    const pixels = side * side;
    for (const index of [0, 1]) {
      const image = images.values.subarray(index * pixels, (index + 1) * pixels);
      const expected = top(logits.values.subarray(index * classes, (index + 1) * classes));
      const found = await seen(() => opened().pick('panel-see/file', file(`${browser}-${index}.bmp`, bmp(image, side))));
      assert.deepEqual(found.map(({ id }) => id), expected.map(({ id }) => id));
      assertClose(found.map((one) => one.probability), expected.map((one) => one.probability), 1e-3);
    }
  });

  test('sees a file the other way round, and the same file again', { timeout: 3 * RUN_MS }, async () => {
    const page = opened();
    const upright = await page.bars('panel-see/classes');
    await seen(() => page.check('panel-see/invert', true));
    assert.deepEqual(await seen(() => page.check('panel-see/invert', false)), upright);
    await page.click('panel-see/clear');
    await seen(() => page.click('panel-see/run'));
    assert.deepEqual(await seen(() => page.pick('panel-see/file', artefact(`${browser}-1.bmp`))), upright);
  });

  const pointers = browser === 'chromium' ? ['mouse', 'finger', 'pen'] : ['mouse', 'finger'];
  for (const pointer of pointers) {
    test(`classifies what a ${pointer} draws`, { timeout: 2 * RUN_MS }, async () => {
      const page = opened();
      await page.click('panel-see/clear');
      await seen(() => page.click('panel-see/run'));
      assert.equal(await brightness(page, [0.5, 0.5]), 0);
      const stroke = [await page.point(PICTURE, [0.3, 0.2]), await page.point(PICTURE, [0.7, 0.8])];
      await seen(() => STROKES[pointer](page, stroke));
      assert.ok((await brightness(page, [0.5, 0.5])) > 100);
      assert.equal(await brightness(page, [0.8, 0.2]), 0);
    });
  }

  test('draws with the first button, from within the picture', { timeout: RUN_MS }, async () => {
    const page = opened();
    await page.click('panel-see/clear');
    const [within, beyond] = [await page.point(PICTURE, [0.9, 0.5]), await page.point(PICTURE)];
    await STROKES.mouse(page, [{ x: within.x + 100, y: within.y }, beyond]);
    await STROKES.mouse(page, [within, beyond], 'middle');
    assert.equal(await brightness(page, [0.7, 0.5]), 0);
  });

  test('refuses what is no image', { timeout: RUN_MS }, async () => {
    const page = opened();
    await page.pick('panel-see/file', file('broken.bmp', bmp(new Uint8Array(side * side), side).subarray(0, 40)));
    await page.until('a message', () => page.visible('message'), Boolean, 10_000);
    assert.match(await page.text('message-text'), /broken\.bmp is not an image/);
    await seen(() => page.click('panel-see/[data-example="bag"]'));
    assert.ok(!(await page.visible('message')));
    assert.deepEqual(page.problems, []);
  });

  if (browser !== 'chromium') return;
  test('takes a file that falls beside its place', { timeout: RUN_MS }, async () => {
    const page = opened();
    await seen(async () => drop(page, await page.point('main h1'), artefact(`${browser}-0.bmp`)));
    await page.open('see');
  });
}
