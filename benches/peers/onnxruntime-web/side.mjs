// headwise and onnxruntime-web in one page of one headless Chromium: answers requests, one JSON a line.
//
//   {"op": "load", "side": SIDE, "model": FOLDER}                           -> {"what": ..., "adapter": ...}
//   {"op": "generate", "side": SIDE, "prompt": [ids], "text": T, "new": N}  -> {"ids": [...], "first_s": ..., "rest_s": ...}
//
//   node side.mjs --packages NODE_MODULES --headwise WEB_PKG --onnx CACHE --python PYTHON 
//     [--attention standard|gqa] [--router topk|argmax] [--verbose]
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { basename, extname, join, normalize, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    packages: { type: 'string' },
    headwise: { type: 'string' },
    onnx: { type: 'string' },
    python: { type: 'string' },
    attention: { type: 'string', default: 'gqa' },
    router: { type: 'string', default: 'argmax' },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    verbose: { type: 'boolean', default: false },
  },
});
for (const name of ['packages', 'headwise', 'onnx']) options[name] = resolve(options[name]);
const here = fileURLToPath(new URL('.', import.meta.url));
const packages = createRequire(join(options.packages, 'none.js'));
const { chromium } = packages('playwright-core');
const version = (name) => JSON.parse(readFileSync(join(options.packages, name, 'package.json'), 'utf8')).version;

const TYPES = { '.html': 'text/html', '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm' };
const roots = {
  page: here,
  ort: join(options.packages, 'onnxruntime-web', 'dist'),
  headwise: options.headwise,
  model: undefined, // set by `load`
  onnx: undefined,
};

/** Serves the folders of `roots`; the headers give ONNX Runtime its threads. */
function serve() {
  const server = createServer((request, response) => {
    const [, root, ...rest] = decodeURIComponent(new URL(request.url, 'http://localhost').pathname).split('/');
    const file = roots[root] && join(roots[root], normalize(`/${rest.join('/')}`));
    const found = file && existsSync(file) && statSync(file).isFile();
    response.writeHead(found ? 200 : 404, {
      'content-type': TYPES[extname(file ?? '')] ?? 'application/octet-stream',
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
      ...(found && { 'content-length': statSync(file).size }),
    });
    response.end(found ? readFileSync(file) : undefined);
  });
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

/** The folder of a model's graphs, written if it is older than the model. */
function graphs(model) {
  const out = join(options.onnx, `${basename(model)}-${options.attention}-${options.router}`);
  const when = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
  const script = join(here, 'export.py');
  if (when(join(out, 'graph.json')) < Math.max(when(join(model, 'model.safetensors')), when(script))) {
    execFileSync(options.python, [script, model, out, '--attention', options.attention, '--router', options.router], { stdio: ['ignore', 2, 2] });
  }
  return out;
}

const server = await serve();
const browser = await chromium.launch({
  executablePath: options.chromium,
  headless: true,
  chromiumSandbox: process.getuid?.() !== 0, // the sandbox refuses to run as root
  args: [
    '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', // both are needed for an adapter
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
  ],
});
const page = await browser.newPage();
page.on('console', (message) => console.error(`page: ${message.text()}`));
page.on('pageerror', (error) => console.error(`page: ${error}`));
const base = `http://127.0.0.1:${server.address().port}`;
await page.goto(`${base}/page/page.html`);
await page.waitForFunction(() => window.sides);

const WHAT = {
  'headwise-web': (how) => `headwise's wasm build, ${how}`,
  'onnxruntime-web': (how) => `onnxruntime-web ${version('onnxruntime-web')}, WebGPU, ${options.attention} attention, ${options.router} router, f32, ${how}`,
};

async function answer({ op, side, model, ...request }) {
  if (op === 'load') {
    roots.model = model;
    if (side === 'onnxruntime-web') roots.onnx = graphs(model);
    const { adapter, how } = await page.evaluate(
      ([side, base, verbose]) => window.sides[side].load(base, verbose), [side, base, options.verbose],
    );
    return { what: WHAT[side](how), adapter: `${adapter}, Chromium ${browser.version()}` };
  }
  if (op !== 'generate') throw new Error(`${side} does not ${op}`);
  return page.evaluate(([side, request]) => window.sides[side].generate(request), [side, request]);
}

for await (const line of createInterface({ input: process.stdin })) {
  const reply = await answer(JSON.parse(line)).catch((error) => ({ error: String(error.message ?? error).split('\n')[0] }));
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
await browser.close();
server.close();
