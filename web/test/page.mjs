// The page as the tests see it, through one browser driver or the other.
import assert from 'node:assert/strict';

export const LOAD_MS = 120_000;
export const RUN_MS = 120_000;

/**
 * Playwright and Puppeteer share the calls that are used here. A part of the page is named by its test id, or by a
 * path of them: `panel-fill/input`.
 */
export class Page {
  constructor(page) {
    this.page = page;
    this.problems = [];
    page.on('pageerror', (error) => this.problems.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && this.problems.push(message.text()));
  }

  static id = (path) => path.split('/').map((name) => `[data-testid="${name}"]`).join(' ');

  text = (path) => this.page.$eval(Page.id(path), (element) => element.textContent);
  value = (path) => this.page.$eval(Page.id(path), (element) => element.value);
  click = (path) => this.page.$eval(Page.id(path), (element) => element.click());
  enabled = (path) => this.page.$eval(Page.id(path), (element) => !element.disabled);
  visible = (path) => this.page.$eval(Page.id(path), (element) => element.checkVisibility());

  async set(path, value) {
    await this.page.$eval(
      Page.id(path),
      (element, value) => {
        if (typeof value === 'boolean') element.checked = value;
        else element.value = value;
        element.dispatchEvent(new Event('input', { bubbles: true }));
        element.dispatchEvent(new Event('change', { bubbles: true }));
      },
      value,
    );
  }

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
    const layers = await this.page.$$eval(`${Page.id(view)} option`, (options) => options.map(({ value, text }) => ({ value, text })));
    assert.ok(layers.length > 1);
    const painted = new Set();
    for (const { value, text } of layers) {
      await this.set(`${view}/layer`, value);
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

