// The page as the tests see it, through one browser driver or the other.
import assert from 'node:assert/strict';

export const LOAD_MS = 120_000;
export const RUN_MS = 120_000;

/** What can be used by pointer and keyboard. */
export const CONTROLS = ':is(button, input, select, textarea):enabled, canvas, [tabindex="0"]';

/** The key that goes with A to select a whole text. */
const COMMAND = process.platform === 'darwin' ? 'Meta' : 'Control';

/** Runs in the browser: brings the visible of these into view; shares of each as points, and what a pointer meets there. */
function meet(elements, shares) {
  const visible = elements.filter((element) => element.checkVisibility());
  return visible.flatMap((element) => {
    element.scrollIntoView({ block: 'center', inline: 'center', behavior: 'instant' });
    const { x, y, width, height } = element.getBoundingClientRect();
    const high = Math.min(height, innerHeight / 2); // the middle of what is taller than the window
    return shares.map(([across, down]) => {
      const at = { x: x + across * width, y: y + height / 2 + (down - 0.5) * high };
      const met = document.elementFromPoint(at.x, at.y);
      const show = (one) => one?.cloneNode().outerHTML;
      return { ...at, meets: element.contains(met), of: show(element), met: show(met) };
    });
  });
}

/**
 * Playwright and Puppeteer share the calls that are used here. A part of the page is named by its test id, by a
 * selector, or by a path of them: `panel-fill/input`. What a reader does by hand is done with the driver's pointer and
 * keyboard, never by calls and events of the page's own.
 */
export class Page {
  constructor(page) {
    this.page = page;
    this.problems = [];
    page.on('pageerror', (error) => this.problems.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && this.problems.push(message.text()));
  }

  static id = (path) => path.split('/').map((name) => (/^[\w-]+$/.test(name) ? `[data-testid="${name}"]` : name)).join(' ');

  text = (path) => this.page.$eval(Page.id(path), (element) => element.textContent);
  value = (path) => this.page.$eval(Page.id(path), (element) => element.value);
  enabled = (path) => this.page.$eval(Page.id(path), (element) => !element.disabled);
  visible = (path) => this.page.$eval(Page.id(path), (element) => element.checkVisibility());

  /** Where a pointer meets a part, by shares of its width and height; an error if something covers it. */
  point(path, share = [0.5, 0.5]) {
    const find = async () => (await this.page.$$eval(Page.id(path), meet, [share]))[0];
    return this.until(`a pointer to meet ${path}`, find, (point) => point?.meets, 3_000);
  }

  /** Asserts that a pointer meets all that can be used. */
  async meetsAll() {
    const corners = [[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8]];
    const points = await this.page.$$eval(CONTROLS, meet, [[0.5, 0.5], ...corners]);
    assert.ok(points.length > 50, `${points.length} points`);
    assert.deepEqual(points.filter(({ meets }) => !meets), []);
  }

  async click(path, share) {
    const { x, y } = await this.point(path, share);
    await this.page.mouse.click(x, y);
  }

  /** Types a text in place of the one that is there. */
  async type(path, text) {
    if ((await this.value(path)) === text) return;
    const { keyboard } = this.page;
    await this.click(path);
    await keyboard.down(COMMAND);
    await keyboard.press('a');
    await keyboard.up(COMMAND);
    await keyboard.press('Backspace');
    await keyboard.type(text);
    assert.equal(await this.value(path), text);
  }

  async check(path, wanted) {
    const checked = () => this.page.$eval(Page.id(path), (box) => box.checked);
    if ((await checked()) !== wanted) await this.click(path);
    assert.equal(await checked(), wanted);
  }

  /** Chooses the entry `index` of a list: a click on its label leaves it closed, the keys move through it. */
  async choose(path, index) {
    await this.click(`${path}-label`, [0.05, 0.5]);
    await this.page.keyboard.press('Home');
    for (let step = 0; step < index; step++) await this.page.keyboard.press('ArrowDown');
    assert.equal(await this.page.$eval(Page.id(path), (list) => list.selectedIndex), index);
  }

  /** Chooses a file in the dialogue that a click on its field opens. */
  async pick(path, file) {
    const { page } = this;
    const [chooser] = await Promise.all([page.waitForFileChooser?.() ?? page.waitForEvent('filechooser'), this.click(path)]);
    await (chooser.accept?.([file]) ?? chooser.setFiles(file));
  }

  focused = () => this.page.evaluate(() => document.activeElement?.dataset.testid ?? document.activeElement?.id);

  /** Waits until `read` gives something that `wanted` accepts, at most `ms`. */
  async until(what, read, wanted, ms) {
    const end = Date.now() + ms;
    for (;;) {
      const value = await read();
      if (wanted(value)) return value;
      if (Date.now() > end) throw new Error(`waited ${ms} ms for ${what}, last saw ${JSON.stringify(value)}`);
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  status(wanted, ms) {
    return this.until(`status ${wanted}`, () => this.text('status'), (status) => status === wanted, ms);
  }

  /** As `status`, but a failure shown by the page ends the wait with its message. */
  async reach(wanted, ms) {
    const seen = await this.until(
      `status ${wanted}`,
      () => this.text('status'),
      (status) => [wanted, 'failed', 'unsupported'].includes(status),
      ms,
    );
    assert.equal(seen, wanted, `the page says: ${await this.text('message-text')} ${this.problems.join('\n')}`);
  }

  /** Opens a task's tab, unless it is open, and waits for its model. */
  async open(task) {
    if (await this.visible(`panel-${task}`)) return;
    await this.click(`tab-${task}`);
    await this.until(task, () => this.visible(`panel-${task}`), Boolean, 5_000);
    await this.reach('ready', LOAD_MS);
  }

  /** Starts a task's work and waits for its end. */
  async run(task) {
    await this.click(`panel-${task}/run`);
    await this.reach('done', RUN_MS);
  }

  /** The tokens shown by a view: id, text, kind, and how they are painted. */
  tokens(view) {
    return this.page.$$eval(`${Page.id(view)} [data-testid="output"] > span`, (spans) =>
      spans.map((span) => {
        const style = getComputedStyle(span);
        return {
          id: Number(span.dataset.id),
          text: span.textContent,
          kind: span.dataset.kind,
          title: span.title,
          back: `${style.backgroundColor} ${style.backgroundImage}`,
          line: `${style.borderBottomColor} ${style.borderBottomStyle}`,
        };
      }),
    );
  }

  /** The bars of a list: id, label, probability. */
  bars(path) {
    return this.page.$$eval(`${Page.id(path)} .bar`, (bars) =>
      bars.map((bar) => ({
        id: Number(bar.dataset.id),
        label: bar.firstElementChild.textContent,
        probability: Number(bar.dataset.probability),
        shown: bar.lastElementChild.textContent,
      })),
    );
  }

  /** A view's colours, from token `first` on, are those of the heads of the chosen layer, as the titles name them. */
  async checkColours(view, first = 0) {
    const layers = await this.page.$$eval(`${Page.id(view)} option`, (options) => options.map(({ text }) => text));
    assert.ok(layers.length > 1);
    const painted = new Set();
    for (const [index, text] of layers.entries()) {
      await this.choose(`${view}/layer`, index);
      const tokens = (await this.tokens(view)).slice(first);
      assert.ok(tokens.length > 1);
      const worn = [new Map(), new Map()]; // colour → expert, of backgrounds and of underlines
      for (const { title, back, line } of tokens) {
        const heads = title.split('\n').find((line) => line.startsWith(`${text}: head experts `));
        assert.ok(heads, `${JSON.stringify(title)} says nothing of ${text}`);
        const experts = heads.slice(text.length).match(/\d+/g);
        [back, line].forEach((colour, slot) => {
          const before = worn[slot].get(colour) ?? experts[slot];
          assert.equal(before, experts[slot], `${text}: two experts wear ${colour}`);
          worn[slot].set(colour, experts[slot]);
        });
      }
      for (const experts of worn) {
        assert.equal(new Set(experts.values()).size, experts.size, `${text}: an expert wears two colours`);
      }
      painted.add(JSON.stringify(tokens.map(({ back, line }) => [back, line])));
    }
    assert.equal(painted.size, layers.length, 'some layers look alike');
  }
}

/** Two lists of probabilities, of the same entries in the same order. */
export function assertClose(found, expected, tolerance) {
  assert.equal(found.length, expected.length);
  found.forEach((value, index) => {
    const wanted = expected[index];
    assert.ok(Math.abs(value - wanted) <= tolerance, `entry ${index}: ${value} is not ${wanted}`);
  });
}

/** A tensor of a safetensors file: its shape and its numbers, row by row. */
export function tensor(bytes, name) {
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes));
  const { dtype, shape, data_offsets: [start, end] } = header[name];
  const data = Uint8Array.from(bytes.subarray(8 + headerBytes + start, 8 + headerBytes + end));
  const values = { F32: () => new Float32Array(data.buffer), I32: () => new Int32Array(data.buffer), U32: () => new Uint32Array(data.buffer), U8: () => data }[dtype]();
  return { shape, values };
}

