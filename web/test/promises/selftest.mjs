// The selftest behind `?selftest`: every kernel is right in this browser, and one that is not is found out.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { LOAD_MS } from '../page.mjs';
import { artefact, serve, web } from '../support.mjs';

const SELFTEST_MS = 600_000;

/** The kernels, by the files of their shaders; what groups rows is one. */
const KERNELS = new Set(
  readdirSync(join(web, '..', 'shaders'))
    .filter((name) => name.endsWith('.wgsl'))
    .map((name) => name.split('.')[0].replace(/^group_.*/, 'group')),
);
const VARIANTS = {
  chromium: { routed_matvec: 'broadcast packed plain subgroup workgroup', row_attention_prefill: 'broadcast workgroup' },
  firefox: { routed_matvec: 'packed plain workgroup', row_attention_prefill: 'workgroup' },
};

/** What the table shows, by its columns. */
const shownRows = ({ page }) =>
  page.$$eval('[data-testid="rows"] tr', (rows) =>
    rows.map((row) => {
      const [kernel, variant, found, cases, error, limit] = [...row.children].map((cell) => cell.textContent);
      return { kernel, variant, status: row.dataset.status, found, cases, error, limit };
    }),
  );

/** `open(query)` gives a browser page. */
export function tests(open, browser) {
  test('finds every kernel right behind ?selftest, and gives its report', { timeout: SELFTEST_MS }, async () => {
    const page = await open('?selftest&kernels=tuned');
    await page.until('a first row', () => shownRows(page), (rows) => rows.length > 0, LOAD_MS);
    const ended = () => page.page.$eval('[data-testid="selftest"]', ({ dataset }) => dataset.ok);
    await page.until('the end', ended, Boolean, SELFTEST_MS);
    const rows = await shownRows(page);
    assert.deepEqual(rows.filter(({ status }) => !['ok', 'refused', 'note'].includes(status)), []);
    assert.deepEqual([await ended(), await page.text('status')], ['true', 'done']);
    const tested = rows.filter(({ status }) => status === 'ok');
    const names = new Set(tested.map(({ kernel }) => kernel));
    assert.deepEqual(names, new Set([...KERNELS, 'text']));
    for (const [kernel, variants] of Object.entries(VARIANTS[browser])) {
      const found = tested.filter((row) => row.kernel === kernel).map(({ variant }) => variant);
      assert.equal(found.sort().join(' '), variants);
    }
    assert.match(await page.text('summary'), new RegExp(`^${tested.length} of ${tested.length} right, in \\d+ s;`));

    // A browser may keep its clipboard from the page: then the report is there, selected.
    const report = JSON.parse(await page.text('report'));
    assert.deepEqual(report.rows.map(({ kernel, variant }) => `${kernel} ${variant}`), rows.map(({ kernel, variant }) => `${kernel} ${variant}`));
    assert.deepEqual([report.ok, report.adapter.backend], [true, 'webgpu']);
    assert.ok(report.browser.includes(browser === 'chromium' ? 'Chrome' : 'Firefox'), report.browser);
    await page.click('copy');
    await page.until('an answer to the click', () => page.text('copied'), Boolean, 5_000);
    if ((await page.text('copied')) !== 'copied') {
      assert.equal(await page.page.evaluate(() => getSelection().toString().trim()), await page.text('report'));
    }
    await page.page.screenshot({ path: artefact(`${browser}-selftest.png`), fullPage: true });
    assert.deepEqual(page.problems, []);
    await page.page.close();
  });
}

/** Runs in the browser: tests one kernel where the device gets another text of it. */
async function testOf([base, label, from, to]) {
  const { default: init, selftest } = await import(`${base}pkg/headwise.js`);
  await init();
  const { createShaderModule } = GPUDevice.prototype;
  let changed = 0;
  GPUDevice.prototype.createShaderModule = function (descriptor) {
    const { code } = descriptor;
    const other = descriptor.label === `headwise.${label}` ? code.replaceAll(from, to) : code;
    if (other !== code) changed++;
    return createShaderModule.call(this, { ...descriptor, code: other });
  };
  try {
    const options = JSON.stringify({ kernels: 'tuned', model: `${base}public/models/prose/`, filter: label });
    const told = [];
    const report = JSON.parse(await selftest(options, (row) => told.push(JSON.parse(row))));
    return { changed, report, told };
  } finally {
    GPUDevice.prototype.createShaderModule = createShaderModule;
  }
}

/** `open` gives an empty browser page. */
export function finds(open) {
  let server;
  before(async () => { server = await serve(web); });
  after(() => server?.close());

  const cases = {
    'that the browser does not compile': ['fn main(', 'fn main(nonsense ', 'failed', /combine/],
    'that computes something else': ['sum +=', 'sum -=', 'wrong', /off by/],
  };
  for (const [what, [from, to, status, remark]] of Object.entries(cases)) {
    test(`finds out a kernel ${what}`, { timeout: LOAD_MS }, async () => {
      // Not before: a page behind another one has no ticks to hurry Firefox with.
      const page = await open();
      await page.goto(`${server.url}test/engine.html`);
      const { changed, report, told } = await page.evaluate(testOf, [server.url, 'combine', from, to]);
      await page.close();
      assert.ok(changed > 0, `no shader has ${from}`);
      assert.equal(report.ok, false);
      assert.deepEqual(report.rows.map((row) => [row.kernel, row.status]), [['combine', status]]);
      assert.match(report.rows[0].remark, remark);
      assert.deepEqual(told.at(-1), report.rows[0]);
      assert.equal(told[0].cases, 0);
    });
  }
}
