// Seeing: the reference's labels and probabilities.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LOAD_MS, RUN_MS, Page, assertClose, tensor } from '../page.mjs';
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

/** Chooses a file made of these bytes. */
const choose = (page, bytes) =>
  page.page.$eval(
    Page.id('panel-see/file'),
    (input, bytes) => {
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(bytes)], 'image.bmp', { type: 'image/bmp' }));
      input.files = files.files;
      input.dispatchEvent(new Event('change', { bubbles: true }));
    },
    [...bytes],
  );

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

  test('names its examples', { timeout: LOAD_MS + 3 * RUN_MS }, async () => {
    const page = opened();
    await page.open('see');
    const names = await page.page.$$eval('[data-testid="panel-see"] [data-example]', (all) => all.map((one) => one.dataset.example));
    assert.deepEqual(names.map((name) => `${name}.png`).sort(), Object.keys(examples).sort());
    for (const name of names) {
      const click = () => page.page.$eval(`[data-testid="panel-see"] [data-example="${name}"]`, (button) => button.click());
      const [{ label }] = await seen(click);
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
      const found = await seen(() => choose(opened(), bmp(image, side)));
      assert.deepEqual(found.map(({ id }) => id), expected.map(({ id }) => id));
      assertClose(found.map((one) => one.probability), expected.map((one) => one.probability), 1e-3);
    }
  });

  test('classifies a drawing, refuses what is no image', { timeout: 2 * RUN_MS }, async () => {
    const page = opened();
    await page.click('panel-see/clear');
    const at = await page.page.$eval(Page.id('panel-see/picture'), (canvas) => {
      canvas.scrollIntoView({ block: 'center' });
      const { x, y, width, height } = canvas.getBoundingClientRect();
      return { x, y, width, height };
    });
    await seen(async () => {
      await page.page.mouse.move(at.x + 0.3 * at.width, at.y + 0.2 * at.height);
      await page.page.mouse.down();
      await page.page.mouse.move(at.x + 0.7 * at.width, at.y + 0.8 * at.height);
      await page.page.mouse.up();
    });
    await choose(page, [1, 2, 3]);
    await page.until('a message', () => page.visible('message'), Boolean, 10_000);
    assert.match(await page.text('message-text'), /image\.bmp is not an image/);
    assert.deepEqual(page.problems, []);
  });
}
