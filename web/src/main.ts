/** The page: its controls, and what it says in each state. */
import './style.css';
import { EngineWorker } from './engine';
import type { Info, Lack, Reply, Summary } from './protocol';
import { TokenView } from './tokens';

const MODEL = new URL('models/prose/', document.baseURI).href;
/** A screen reader gets the new text this often, not token by token. */
const SPEAK_EVERY_MS = 3_000;

function element<T extends HTMLElement>(testId: string): T {
  const found = document.querySelector<T>(`[data-testid="${testId}"]`);
  if (!found) throw new Error(`the page has no ${testId}`);
  return found;
}

const form = element<HTMLFormElement>('form');
const status = element('status');
const progress = element<HTMLProgressElement>('progress');
const progressText = element('progress-text');
const prompt = element<HTMLTextAreaElement>('prompt');
const maxNew = element<HTMLInputElement>('max-new');
const greedy = element<HTMLInputElement>('greedy');
const generate = element<HTMLButtonElement>('generate');
const stop = element<HTMLButtonElement>('stop');
const output = element('output');
const speed = element('speed');
const layer = element<HTMLSelectElement>('layer');
const adapter = element('adapter');
const message = element('message');
const messageText = element('message-text');
const reload = element<HTMLButtonElement>('reload');
const speech = element('speech');

type State = 'loading' | 'ready' | 'generating' | 'done' | 'failed' | 'unsupported';
let state: State = 'loading';
let loaded = false;
let seed = 0;
let spoken = 0;
let unspoken = '';

const tokens = new TokenView(output, element('legend'), element('detail'));
const worker = new EngineWorker({
  reply: onReply,
  died: (why) => {
    loaded = false;
    fail(`The engine stopped: ${why}`);
  },
  silent: (silent) => {
    if (silent) say('The engine has not answered for half a minute. It may be busy; reload it if it stays so.', true);
    else message.hidden = true;
  },
});

function enter(next: State) {
  state = next;
  status.textContent = next;
  status.dataset.state = next;
  generate.disabled = !loaded || next === 'generating';
  stop.disabled = next !== 'generating';
  element('loading').hidden = next !== 'loading';
  output.setAttribute('aria-busy', String(next === 'generating'));
}

/** Shows a message in place of what can't be done, with the way on where there is one. */
function say(text: string, canReload: boolean) {
  messageText.textContent = text;
  reload.hidden = !canReload;
  message.hidden = false;
}

function fail(text: string) {
  tokens.flush();
  enter('failed');
  say(text, true);
}

function load() {
  message.hidden = true;
  progress.removeAttribute('value');
  progressText.textContent = '';
  adapter.textContent = '';
  loaded = false;
  enter('loading');
  worker.restart(MODEL);
}

function onReply(reply: Reply) {
  switch (reply.kind) {
    case 'unsupported':
      worker.stop();
      enter('unsupported');
      return say(explain(reply.lack), false);
    case 'progress':
      progress.max = reply.total;
      progress.value = reply.done;
      progressText.textContent = `${megabytes(reply.done)} of ${megabytes(reply.total)} MB`;
      return;
    case 'ready':
      return onReady(reply.info);
    case 'token':
      tokens.push(reply.token);
      if (!reply.token.prompt) speak(reply.token.text);
      return;
    case 'done':
      return onDone(reply.summary);
    case 'failed':
      return fail(`${state === 'loading' ? 'The model could not be loaded' : 'The run failed'}: ${reply.message}`);
  }
}

function onReady(info: Info) {
  const { name, backend, type } = info.adapter;
  adapter.textContent = [name || 'unnamed adapter', backend, type].filter(Boolean).join(' · ');
  const chosen = Math.min(layer.selectedIndex < 0 ? Math.floor(info.layers / 2) : layer.selectedIndex, info.layers - 1);
  layer.replaceChildren(...Array.from({ length: info.layers }, (_, i) => new Option(`layer ${i}`, String(i))));
  layer.selectedIndex = chosen;
  layer.disabled = false;
  maxNew.max = String(info.context);
  loaded = true;
  element('text').hidden = false;
  tokens.reset(info);
  tokens.showLayer(chosen);
  enter('ready');
}

function onDone(summary: Summary) {
  tokens.flush();
  speak('', true);
  const rate = (count: number, ms: number) => (ms > 0 ? `${((1000 * count) / ms).toFixed(1)} tokens/s` : '–');
  const parts = [
    `prefill ${rate(summary.promptTokens, summary.prefillMs)} (${summary.promptTokens} tokens)`,
    `decode ${rate(summary.newTokens - 1, summary.decodeMs)} (${summary.newTokens} tokens)`,
  ];
  if (!greedy.checked) parts.push(`seed ${seed}`);
  if (summary.stopped) parts.push('stopped');
  speed.textContent = parts.join(' · ');
  enter('done');
}

function run() {
  if (generate.disabled || !form.reportValidity()) return;
  message.hidden = true;
  speed.textContent = '';
  tokens.clear();
  spoken = performance.now();
  unspoken = '';
  speech.textContent = '';
  seed = crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
  const options = { max_new: maxNew.valueAsNumber, greedy: greedy.checked, temperature: 0.8, top_k: 40, top_p: 0.95, seed };
  enter('generating');
  worker.send({ kind: 'generate', prompt: prompt.value, options });
}

function speak(text: string, now = false) {
  unspoken += text;
  if (!unspoken || (!now && performance.now() - spoken < SPEAK_EVERY_MS)) return;
  const part = document.createElement('p');
  part.textContent = unspoken;
  speech.append(part);
  spoken = performance.now();
  unspoken = '';
}

const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);

function explain(lack: Lack): string {
  switch (lack) {
    case 'insecure':
      return 'Browsers offer WebGPU to secure pages only: open this page over https, or from localhost.';
    case 'webgpu':
      return (
        'This browser has no WebGPU, which headwise needs. It is in Chrome and Edge 113 or newer, ' +
        'Firefox 141 (Windows) or 145 (macOS) or newer, and Safari 26 or newer.'
      );
    case 'adapter':
      return (
        'This browser knows WebGPU but offers no GPU adapter here: its driver may be on the browser’s ' +
        'block list, or hardware acceleration may be turned off in the settings.'
      );
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  run();
});
stop.addEventListener('click', () => worker.send({ kind: 'stop' }));
reload.addEventListener('click', load);
layer.addEventListener('change', () => tokens.showLayer(layer.selectedIndex));
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && state === 'generating') worker.send({ kind: 'stop' });
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) run();
});
for (const example of document.querySelectorAll<HTMLButtonElement>('[data-example]')) {
  example.addEventListener('click', () => {
    prompt.value = example.textContent ?? '';
    prompt.focus();
  });
}

load();
