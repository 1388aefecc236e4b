// Both sides, in the page: `window.sides[name].load(base)` and `.generate({ prompt, text, new })`.

const seconds = (from, to) => (to - from) / 1000;

async function adapterName() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error('the browser has no WebGPU adapter');
  const { description, vendor, architecture } = adapter.info;
  return description || [vendor, architecture].filter(Boolean).join(' ') || 'unnamed';
}

const headwise = {
  async load(base) {
    const { default: init, Engine } = await import(`${base}/headwise/headwise.js`);
    await init();
    this.engine?.free();
    this.engine = await Engine.load(`${base}/model/`, '{}', () => {});
    return { adapter: await adapterName(), how: 'in the page' };
  },

  async generate({ text, new: count }) {
    const ids = [];
    const start = performance.now();
    let first = start;
    let last = start;
    await this.engine.generate(text, JSON.stringify({ max_new: count, greedy: true }), (json) => {
      const token = JSON.parse(json);
      if (token.prompt) return true;
      last = performance.now();
      if (ids.push(token.id) === 1) first = last;
      return true;
    });
    return { ids, first_s: seconds(start, first), rest_s: seconds(first, last) };
  },
};

const onnxruntime = {
  async load(base, verbose) {
    const ort = (this.ort = await import(`${base}/ort/ort.webgpu.bundle.min.mjs`));
    ort.env.wasm.wasmPaths = `${base}/ort/`;
    ort.env.logLevel = verbose ? 'verbose' : 'error';
    this.graph = await (await fetch(`${base}/onnx/graph.json`)).json();
    // Keys and values stay on the GPU; only the id comes back.
    const preferredOutputLocation = { next: 'cpu' };
    for (let i = 0; i < this.graph.layers; i++) {
      for (const part of 'kv') preferredOutputLocation[`present_${part}.${i}`] = 'gpu-buffer';
    }
    const session = (name) =>
      ort.InferenceSession.create(`${base}/onnx/${name}.onnx`, {
        executionProviders: ['webgpu'],
        preferredOutputLocation,
        logSeverityLevel: verbose ? 0 : 3,
        logVerbosityLevel: 0,
      });
    this.prefill = await session('prefill');
    this.decode = await session('decode');
    return { adapter: await adapterName(), how: `${ort.env.wasm.numThreads || 'default'} threads` };
  },

  feeds(ids, start) {
    const { Tensor } = this.ort;
    const total = start + ids.length;
    const feeds = { ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), [ids.length]) };
    if (this.graph.attention === 'gqa') {
      feeds.lengths = new Tensor('int32', Int32Array.of(total - 1), [1]);
      feeds.total = new Tensor('int32', Int32Array.of(total), [1]);
    } else {
      feeds.positions = new Tensor('int64', BigInt64Array.from(ids, (_, i) => BigInt(start + i)), [ids.length]);
    }
    return feeds;
  },

  async generate({ prompt, new: count }) {
    const ids = [];
    const start = performance.now();
    let out = await this.prefill.run(this.feeds(prompt, 0));
    ids.push(Number(out.next.data[0]));
    const first = performance.now();
    while (ids.length < count) {
      const feeds = this.feeds(ids.slice(-1), prompt.length + ids.length - 1);
      const past = Object.entries(out).filter(([name]) => name !== 'next');
      for (const [name, tensor] of past) feeds[name.replace('present', 'past')] = tensor;
      out = await this.decode.run(feeds);
      for (const [, tensor] of past) tensor.dispose();
      ids.push(Number(out.next.data[0]));
    }
    const last = performance.now();
    for (const [name, tensor] of Object.entries(out)) if (name !== 'next') tensor.dispose();
    return { ids, first_s: seconds(start, first), rest_s: seconds(first, last) };
  },
};

window.sides = { 'headwise-web': headwise, 'onnxruntime-web': onnxruntime };
