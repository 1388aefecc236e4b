// llama.cpp on one of its backends, by node-llama-cpp's ready-made build: answers requests, one JSON a line.
//
//   {"op": "load", "model": FOLDER}                -> {"what": ..., "adapter": ...}
//   {"op": "generate", "prompt": [ids], "new": N}  -> {"ids": [...], "first_s": ..., "rest_s": ...}
//
//   node side.mjs --packages NODE_MODULES --gguf CACHE --python PYTHON --backend vulkan|cpu
//
// It runs a random mixture of the same active size as the folder's model (write_mixture.py), so its ids are its own.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    packages: { type: 'string' },
    gguf: { type: 'string' },
    python: { type: 'string' },
    backend: { type: 'string', default: 'vulkan' },
  },
});
// Its Vulkan backend passes over devices that are CPUs, such as lavapipe, unless they are chosen by number.
process.env.GGML_VK_VISIBLE_DEVICES ??= '0';

const package_ = resolve(options.packages, 'node-llama-cpp');
const { getLlama } = await import(pathToFileURL(join(package_, 'dist', 'index.js')));
const { version } = JSON.parse(readFileSync(join(package_, 'package.json'), 'utf8'));

const onCpu = options.backend === 'cpu';
let sequence;

/** The mixture for a model, written if it is older than what it is made of. */
function mixture(folder) {
  const out = join(options.gguf, `${basename(folder)}.gguf`);
  const script = fileURLToPath(new URL('write_mixture.py', import.meta.url));
  const when = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
  if (when(out) < Math.max(when(join(folder, 'config.json')), when(script))) {
    mkdirSync(options.gguf, { recursive: true });
    execFileSync(options.python, [script, folder, `${out}.partial`], { stdio: ['ignore', 2, 2] });
    renameSync(`${out}.partial`, out);
  }
  return out;
}

async function load({ model: folder }) {
  const llama = await getLlama({
    gpu: onCpu ? false : options.backend,
    build: 'never',
    skipDownload: true,
    vramPadding: 0,
    logLevel: 'info',
    logger: (_, message) => process.stderr.write(`${message.trimEnd()}\n`),
  });
  const model = await llama.loadModel({ modelPath: mixture(folder), gpuLayers: onCpu ? 0 : 'max' });
  const threads = { ideal: availableParallelism(), min: availableParallelism() }; // its own choice is the host's cores
  const contextSize = Math.min(1024, model.trainContextSize);
  sequence = (await model.createContext({ contextSize, batchSize: 512, threads })).getSequence();
  const where = onCpu ? `CPU, ${threads.ideal} threads` : `Vulkan, ${model.gpuLayers} layers and outputs on the device`;
  return {
    what: `llama.cpp ${llama.llamaCppRelease.release} of node-llama-cpp ${version}, ${where}, f16, a random Mixtral of the same active size`,
    adapter: onCpu ? undefined : (await llama.getGpuDeviceNames()).join(', '),
  };
}

// Above eight tokens at once the Vulkan backend uses tiled products, which crash Mesa 22.3's lavapipe and take minutes the first
// time on 25.0's. Before a decode, whose time starts at the first new token, the prompt is therefore read in eights.
const EIGHT = 8;

async function generate({ prompt, new: count }) {
  await sequence.clearHistory();
  const start = performance.now();
  let read = 0;
  for (; count > 1 && prompt.length - read > EIGHT; read += EIGHT) {
    await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(read, read + EIGHT));
  }
  const ids = [];
  let first;
  for await (const id of sequence.evaluate(prompt.slice(read), { temperature: 0, yieldEogToken: true })) {
    ids.push(id);
    first ??= performance.now();
    if (ids.length === count) break;
  }
  if (ids.length < count) throw new Error(`it stopped after ${ids.length} of ${count} tokens`);
  return { ids, first_s: (first - start) / 1000, rest_s: (performance.now() - first) / 1000 };
}

const OPS = { load, generate };
for await (const line of createInterface({ input: process.stdin })) {
  let reply;
  try {
    const request = JSON.parse(line);
    reply = await OPS[request.op](request);
  } catch (error) {
    reply = { error: String(error.message ?? error).split('\n')[0] };
  }
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
process.exit(0);
