// Every shader, compiled by headless Chromium (Tint): naga alone accepts text that browsers refuse.
// HEADWISE_SHADERS names the folder of expanded WGSL files that the native build writes.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { dist, launchChromium, required, serve } from './support.mjs';

const folder = required('HEADWISE_SHADERS', 'the folder of expanded shaders that the native build writes');
const files = readdirSync(folder).filter((name) => name.endsWith('.wgsl')).sort();

const uncommented = (source) => source.replace(/\/\/.*$/gm, '').replace(/\/\*[\s\S]*?\*\//g, '');

/** The host's prelude: browsers want the line that naga does not know yet. */
const prelude = (name) => (/\.(subgroup|broadcast)\.wgsl$/.test(name) ? 'enable subgroups;\n' : '');

const entryPoints = (source) => [...source.matchAll(/@compute\b[^{};]*?\bfn\s+(\w+)/g)].map(([, name]) => name);

/** Values of the overrides that are numbers. One that is not here fails the test. */
const NUMBERS = {
  SHARED: [0, 2], GROUPS: [1, 2], UNSCORED: [0, 2], RENORM_EPS: [0, 1e-6], SCALE: [1, 2.5],
  LANES: [4, 16], ROWS: [1, 8], COLUMNS: [1, 4], EACH: [4, 16],
};

/**
 * Values to try for each `override`: both of a bool; for an enumeration, that is a u32 that starts as one of the
 * constants above it, each of those constants; for a number, those of NUMBERS.
 */
function choices(source) {
  const enumerations = /((?:^const \w+: u32 = \d+u;\s*)+)override (\w+): u32 = [A-Z]\w*;/gm;
  const values = new Map();
  for (const [, constants, name] of source.matchAll(enumerations)) {
    values.set(name, [...constants.matchAll(/= (\d+)u;/g)].map(([, value]) => Number(value)));
  }
  for (const [, name, type] of source.matchAll(/\boverride\s+(\w+)\s*:\s*(\w+)/g)) {
    if (type === 'bool') values.set(name, [0, 1]);
    else if (!values.has(name)) values.set(name, NUMBERS[name] ?? assert.fail(`what values does ${name} take?`));
  }
  return values;
}

/** More combinations than these take too long. */
const MOST = 64;

/**
 * Every combination of those values where there are few; otherwise combinations in which every value of each override
 * meets every value of each other one.
 */
function permutations(source) {
  const overrides = [...choices(source)];
  const count = overrides.reduce((product, [, values]) => product * values.length, 1);
  if (count <= MOST) {
    const vary = (sets, [name, values]) => sets.flatMap((set) => values.map((value) => ({ ...set, [name]: value })));
    return overrides.reduce(vary, [{}]);
  }
  const pairs = overrides.flatMap(([name, values], index) =>
    overrides.slice(0, index).flatMap(([other, others]) =>
      values.flatMap((value) => others.map((beside) => [[name, value], [other, beside]]))));
  const fits = (set, pair) => pair.every(([name, value]) => !(name in set) || set[name] === value);
  const sets = [];
  let left = pairs;
  while (left.length) {
    const set = {};
    for (const pair of left) if (fits(set, pair)) Object.assign(set, Object.fromEntries(pair));
    for (const [name, [value]] of overrides) set[name] ??= value;
    left = left.filter((pair) => pair.some(([name, value]) => set[name] !== value));
    sets.push(set);
  }
  return sets;
}

/** Runs in the browser: the errors of one module and of its pipelines, each on a line. */
async function compile({ name, code, features, entries, sets }) {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return ['no adapter'];
  if (features.includes('shader-f16') && !adapter.features.has('shader-f16')) {
    // As SwiftShader has none, the same text in f32; naga checks which types meet.
    code = code.replace(/^enable f16;$/m, '').replace(/\bf16\b/g, 'f32');
    features = features.filter((feature) => feature !== 'shader-f16');
  }
  const lacking = features.filter((feature) => !adapter.features.has(feature));
  if (lacking.length) return [`this browser's adapter has no ${lacking}`];
  const device = await adapter.requestDevice({ requiredFeatures: features }); // default limits
  const errors = [];
  device.pushErrorScope('validation'); // says the same as the messages below, less tidily
  try {
    const module = device.createShaderModule({ code, label: name });
    for (const { type, message, lineNum, linePos } of (await module.getCompilationInfo()).messages) {
      if (type === 'error') errors.push(`${name}:${lineNum}:${linePos}: ${message}`);
    }
    const invalid = await device.popErrorScope();
    if (invalid && errors.length === 0) errors.push(`${name}: ${invalid.message}`);
    // All at once, so that the browser's threads share them.
    const pipelines = (errors.length ? [] : entries).flatMap((entryPoint) => sets.map(async (constants) => {
      const compute = { module, entryPoint, constants };
      await device.createComputePipelineAsync({ layout: 'auto', compute }).catch((error) => {
        errors.push(`${name}: ${entryPoint} with ${JSON.stringify(constants)}: ${error.message}`);
      });
    }));
    await Promise.all(pipelines);
  } finally {
    device.destroy();
  }
  return errors;
}

describe('shaders in Chromium', () => {
  let server;
  let browser;
  let page;
  before(async () => {
    server = await serve(dist); // WebGPU wants a secure page: any file on loopback will do
    browser = await launchChromium();
    page = await browser.newPage();
    await page.route('**/empty.html', (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html>' }));
    await page.goto(`${server.url}empty.html`);
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  test('there are shaders', () => assert.notEqual(files.length, 0, `no .wgsl file in ${folder}`));

  for (const name of files) {
    test(name, { timeout: 120_000 }, async () => {
      const text = readFileSync(join(folder, name), 'utf8');
      const source = uncommented(text);
      const enabled = [...source.matchAll(/^\s*enable\s+([\w\s,]+);/gm)].flatMap(([, list]) => list.split(',')).map((s) => s.trim());
      const features = enabled.includes('f16') ? ['shader-f16'] : [];
      if (prelude(name)) features.push('subgroups');
      const entries = entryPoints(source);
      assert.notEqual(entries.length, 0, `${name} has no @compute entry point`);
      // The prelude shares the first line, so that line numbers are the file's.
      const code = prelude(name).trimEnd() + text;
      const errors = await page.evaluate(compile, { name, code, features, entries, sets: permutations(source) });
      const message = errors.join('\n');
      if (message) throw Object.assign(new Error(message), { stack: message }); // where in this file is no help
    });
  }
});
