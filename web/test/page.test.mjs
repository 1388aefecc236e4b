// The page in headless Chromium (Tint, SwiftShader) and headless Firefox (naga, lavapipe).
// Needs the built page (scripts/web) and HEADWISE_BIN, a native `headwise` to compare with.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { artefact, dist, launchChromium, launchFirefox, model, required, serve } from './support.mjs';

const NEW_TOKENS = 24;
const PROMPT = 'It is a truth universally acknowledged, that';
const LOAD_MS = 120_000;
const RUN_MS = 120_000;

/** What the native engine writes after the prompt. */
function nativeText(prompt) {
  const binary = required('HEADWISE_BIN', 'the native headwise binary');
  const args = ['generate', '--greedy', '--max-new', String(NEW_TOKENS), prompt];
  const text = execFileSync(binary, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], timeout: RUN_MS });
  return (text.startsWith(prompt) ? text.slice(prompt.length) : text).replace(/\n$/, '');
}

/** The page through one driver or the other: Playwright and Puppeteer share these calls. */
class Page {
  constructor(page) {
    this.page = page;
    this.problems = [];
    page.on('pageerror', (error) => this.problems.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && this.problems.push(message.text()));
  }

  static id = (name) => `[data-testid="${name}"]`;

  text = (name) => this.page.$eval(Page.id(name), (element) => element.textContent);
  click = (name) => this.page.$eval(Page.id(name), (element) => element.click());
  enabled = (name) => this.page.$eval(Page.id(name), (element) => !element.disabled);

  async set(name, value) {
    await this.page.$eval(
      Page.id(name),
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

  /** The tokens shown: text, prompt or not, and how they are painted. */
  tokens() {
    return this.page.$$eval('[data-testid="output"] > span', (spans) =>
      spans.map((span) => {
        const style = getComputedStyle(span);
        return {
          text: span.textContent,
          prompt: span.dataset.prompt === 'true',
          title: span.title,
          back: style.backgroundColor,
          line: style.borderBottomColor,
        };
      }),
    );
  }

  async newText() {
    const tokens = await this.tokens();
    return tokens.filter((token) => !token.prompt).map((token) => token.text).join('');
  }

  async generate(prompt, maxNew) {
    await this.set('prompt', prompt);
    await this.set('max-new', String(maxNew));
    await this.set('greedy', true);
    await this.click('generate');
  }
}

/** What the page promises in every browser; `open` gives a loaded, empty browser page. */
function promises(open, screenshot) {
  let page;

  test('loads the model and names the adapter', { timeout: LOAD_MS + 10_000 }, async () => {
    page = await open();
    await page.reach('ready', LOAD_MS);
    assert.notEqual(await page.text('adapter'), '');
    assert.ok(await page.enabled('generate'));
    assert.ok(!(await page.enabled('stop')));
  });

  test('writes the same text as the native engine', { timeout: RUN_MS + 10_000 }, async () => {
    const native = nativeText(PROMPT);
    const reference = JSON.parse(readFileSync(join(model, 'reference.json'), 'utf8'));
    const { greedy } = reference.prompts.find(({ text }) => text === PROMPT);
    assert.notEqual(native, '');
    assert.ok(greedy.startsWith(native), `native text ${JSON.stringify(native)} is no start of the reference's`);

    await page.generate(PROMPT, NEW_TOKENS);
    await page.reach('done', RUN_MS);
    assert.equal(await page.newText(), native);
    assert.equal(await page.text('output'), PROMPT + native);
    assert.match(await page.text('speed'), /prefill [\d.]+ tokens\/s .*decode [\d.]+ tokens\/s/);
    await page.page.screenshot({ path: artefact(screenshot), fullPage: true });
  });

  test('colours each token by the chosen layer', async () => {
    const first = await page.tokens();
    assert.ok(new Set(first.map(({ back }) => back)).size > 1, 'all tokens have one background');
    assert.ok(new Set(first.map(({ line }) => line)).size > 1, 'all tokens have one underline');
    assert.ok(first.every(({ title }) => /^layer 0: head experts \d+ and \d+$/m.test(title)));

    const layers = await page.page.$$eval('[data-testid="layer"] option', (options) => options.map(({ value }) => value));
    const painted = new Set();
    for (const layer of layers) {
      await page.set('layer', layer);
      painted.add(JSON.stringify((await page.tokens()).map(({ back, line }) => [back, line])));
    }
    assert.equal(painted.size, layers.length, 'some layers look alike');
  });

  test('stops in the middle of a run, then runs again', { timeout: 2 * RUN_MS }, async () => {
    await page.generate(PROMPT, 200);
    await page.until('five new tokens', () => page.tokens(), (tokens) => tokens.filter((t) => !t.prompt).length >= 5, RUN_MS);
    assert.equal(await page.text('status'), 'generating');
    await page.click('stop');
    await page.reach('done', 10_000);
    assert.match(await page.text('speed'), /stopped/);
    const shown = (await page.tokens()).filter((token) => !token.prompt).length;
    assert.ok(shown < 200, 'all tokens were written');

    await page.generate(PROMPT, 3);
    await page.reach('done', RUN_MS);
    assert.equal((await page.tokens()).filter((token) => !token.prompt).length, 3);
    assert.deepEqual(page.problems, []);
  });

  return () => page;
}

let server;
before(async () => {
  if (!existsSync(join(dist, 'index.html'))) throw new Error(`there is no ${dist}/index.html: run scripts/web`);
  server = await serve(dist);
});
after(() => server?.close());

describe('page in Chromium', () => {
  let browser;
  before(async () => { browser = await launchChromium(); });
  after(() => browser?.close());

  const open = async () => {
    const page = await browser.newPage({ reducedMotion: 'reduce', viewport: { width: 900, height: 900 } });
    const opened = new Page(page);
    await page.goto(server.url);
    return opened;
  };
  const opened = promises(open, 'chromium.png');

  test('asks the host for nothing that is not there', () => assert.deepEqual(server.missing, []));

  test('offers a reload when the worker dies, and recovers', { timeout: LOAD_MS }, async () => {
    const page = opened();
    await page.page.workers()[0].evaluate(() => { setTimeout(() => { throw new Error('killed by the test'); }); });
    await page.status('failed', 10_000);
    assert.match(await page.text('message-text'), /killed by the test/);
    assert.ok(!(await page.enabled('generate')));
    await page.click('reload');
    await page.reach('ready', LOAD_MS);
    await page.generate(PROMPT, 3);
    await page.reach('done', RUN_MS);
  });
});

describe('page without WebGPU', () => {
  for (const [name, launch, said] of [
    ['no-adapter', () => launchChromium([]), /no GPU adapter/],
    ['no-webgpu', () => launchFirefox({ 'dom.webgpu.enabled': false }), /has no WebGPU/],
  ]) {
    test(`says so: ${name}`, { timeout: 60_000 }, async () => {
      const browser = await launch();
      try {
        const page = new Page(await browser.newPage());
        await page.page.goto(server.url);
        await page.status('unsupported', 30_000);
        assert.match(await page.text('message-text'), said);
        assert.ok(!(await page.enabled('generate')));
        await page.page.screenshot({ path: artefact(`${name}.png`), fullPage: true });
      } finally {
        await browser.close();
      }
    });
  }
});

describe('page in Firefox', () => {
  let browser;
  before(async () => { browser = await launchFirefox(); });
  after(() => browser?.close());

  promises(async () => {
    const page = await browser.newPage();
    const opened = new Page(page);
    await page.setViewport({ width: 900, height: 900 });
    await page.goto(server.url);
    return opened;
  }, 'firefox.png');
});
