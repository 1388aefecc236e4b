/** The engine's thread: loads the wasm module and answers the page's requests. */
import init, { Engine, selftest } from '../pkg/headwise.js';
import wasm from '../pkg/headwise_bg.wasm?url';
import type { Generated, Info, Lack, LoadOptions, Options, Reply, Request, SelftestOptions, SelftestReport, Token, Work } from './protocol';

let engine: Engine | undefined;
let stopped = false;

const reply = (message: Reply) => postMessage(message);
const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** The name of the browser's adapter, made of what it is willing to tell; or why there is none. */
async function findAdapter(): Promise<{ name: string } | { lack: Lack }> {
  if (typeof WebAssembly === 'undefined') return { lack: 'wasm' };
  if (!navigator.gpu) return { lack: isSecureContext ? 'webgpu' : 'insecure' };
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) return { lack: 'adapter' };
  const { description, vendor, architecture } = adapter.info;
  return { name: description || [vendor, architecture].filter(Boolean).join(' ') };
}

/** Fetches and starts the wasm module; what goes wrong names its file. */
async function start() {
  try {
    const response = await fetch(wasm);
    if (!response.ok) throw new Error(`HTTP ${response.status} ${response.statusText}`.trim());
    if (response.headers.get('content-type')?.startsWith('text/html')) throw new Error('found a page, expected WebAssembly');
    await init({ module_or_path: response });
  } catch (error) {
    throw new Error(`${new URL(wasm, location.href)}: ${messageOf(error)}`);
  }
}
let started: Promise<void> | undefined;

/** Starts the wasm module, where there is an adapter, and gives that one's name; else the page learns what is missing. */
async function begin(): Promise<string | undefined> {
  const adapter = await findAdapter();
  if ('lack' in adapter) return void reply({ kind: 'unsupported', lack: adapter.lack });
  await (started ??= start());
  return adapter.name;
}

async function load(base: string, options: LoadOptions) {
  const adapter = await begin();
  if (adapter === undefined) return;
  engine?.free();
  engine = undefined;
  const onProgress = (done: number, total: number) => reply({ kind: 'progress', done, total });
  engine = await Engine.load(base, JSON.stringify(options), onProgress);
  const info: Info = JSON.parse(engine.info());
  info.adapter.name ||= adapter;
  reply({ kind: 'ready', info });
}

async function test(options: SelftestOptions) {
  const adapter = await begin();
  if (adapter === undefined) return;
  reply({ kind: 'testing', adapter });
  const onRow = (json: string) => reply({ kind: 'row', row: JSON.parse(json) });
  const report: SelftestReport = JSON.parse(await selftest(JSON.stringify(options), onRow));
  report.adapter.name ||= adapter;
  reply({ kind: 'tested', report });
}

function loaded(): Engine {
  if (!engine) throw new Error('no model is loaded');
  return engine;
}

async function generate(prompt: string, options: Options) {
  const engine = loaded();
  stopped = false;
  const start = performance.now();
  let first = start;
  let last = start;
  let fresh = 0;
  const onToken = (json: string): boolean => {
    const token: Token = JSON.parse(json);
    if (!token.prompt) {
      last = performance.now();
      if (fresh++ === 0) first = last;
    }
    reply({ kind: 'token', token });
    return !stopped;
  };
  const result: Generated = JSON.parse(await engine.generate(prompt, JSON.stringify(options), onToken));
  const summary = {
    promptTokens: result.prompt_tokens,
    newTokens: result.new_tokens,
    prefillMs: first - start,
    decodeMs: last - first,
    stopped,
  };
  reply({ kind: 'done', summary });
}

async function work(request: Work): Promise<void> {
  const start = performance.now();
  const ms = () => performance.now() - start;
  switch (request.kind) {
    case 'generate':
      return generate(request.prompt, request.options);
    case 'translate': {
      const translation = JSON.parse(await loaded().translate(request.text, JSON.stringify(request.options)));
      return reply({ kind: 'translated', translation, ms: ms() });
    }
    case 'fill': {
      const filled = JSON.parse(await loaded().fill(request.text, request.top));
      return reply({ kind: 'filled', filled, ms: ms() });
    }
    case 'classify': {
      const { width, height, channels, pixels } = request.image;
      const classification = JSON.parse(await loaded().classify(width, height, channels, pixels, request.top));
      return reply({ kind: 'classified', classification, ms: ms() });
    }
  }
}

// A panic in wasm leaves a module that must not be called again, and a promise that never
// settles: either way it ends as an `error` event of the worker, on which the page drops it.
const die = (error: unknown) => {
  setTimeout(() => {
    throw error;
  });
};
const failed = (error: unknown) => {
  if (error instanceof WebAssembly.RuntimeError) die(error);
  else reply({ kind: 'failed', message: messageOf(error) });
};
addEventListener('unhandledrejection', ({ reason }: PromiseRejectionEvent) => die(reason));

addEventListener('message', ({ data }: MessageEvent<Request>) => {
  switch (data.kind) {
    case 'load':
      load(data.base, data.options).catch(failed);
      break;
    case 'selftest':
      test(data.options).catch(failed);
      break;
    case 'stop':
      stopped = true;
      break;
    case 'ping':
      reply({ kind: 'pong' });
      break;
    default:
      work(data).catch(failed);
  }
});
