/** Continues a prompt. */
import { part, stamp } from '../dom';
import type { Info, Result, Summary } from '../protocol';
import { TokenView } from '../tokens';
import { type Page, type Task, layerNames, middle } from './task';

/** A screen reader gets the new text this often, not token by token. */
const SPEAK_EVERY_MS = 3_000;

export class Write implements Task {
  readonly model = 'models/prose/';
  readonly busy = 'generating';
  readonly #page: Page;
  readonly #form: HTMLFormElement;
  readonly #prompt: HTMLTextAreaElement;
  readonly #maxNew: HTMLInputElement;
  readonly #greedy: HTMLInputElement;
  readonly #generate: HTMLButtonElement;
  readonly #stop: HTMLButtonElement;
  readonly #view: HTMLElement;
  readonly #speed: HTMLElement;
  readonly #tokens: TokenView;
  #seed = 0;
  #spoken = 0;
  #unspoken = '';

  constructor(root: HTMLElement, page: Page) {
    this.#page = page;
    this.#form = part(root, 'form');
    this.#prompt = part(root, 'prompt');
    this.#maxNew = part(root, 'max-new');
    this.#greedy = part(root, 'greedy');
    this.#generate = part(root, 'run');
    this.#stop = part(root, 'stop');
    this.#view = part(root, 'text');
    stamp(this.#view);
    this.#speed = part(this.#view, 'speed');
    this.#tokens = new TokenView(this.#view);
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    this.#stop.addEventListener('click', () => page.stop());
    for (const example of root.querySelectorAll<HTMLButtonElement>('[data-example]')) {
      example.addEventListener('click', () => {
        this.#prompt.value = example.textContent ?? '';
        this.#prompt.focus();
      });
    }
  }

  ready(info: Info) {
    this.#maxNew.max = String(info.context);
    this.#view.hidden = false;
    this.#tokens.reset({ layers: layerNames(info.layers), experts: info.experts, initial: middle(info.layers) });
  }

  enable(idle: boolean, working: boolean) {
    this.#generate.disabled = !idle;
    this.#stop.disabled = !working;
    part(this.#view, 'output').setAttribute('aria-busy', String(working));
  }

  run() {
    if (this.#generate.disabled || !this.#form.reportValidity()) return;
    this.#speed.textContent = '';
    this.#tokens.clear();
    this.#spoken = performance.now();
    this.#unspoken = '';
    this.#seed = crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
    const temperature = this.#greedy.checked ? 0 : 0.8;
    const sampling = { temperature, top_k: 40, top_p: 0.95, seed: this.#seed };
    const options = { max_new: this.#maxNew.valueAsNumber, sampling };
    this.#page.start({ kind: 'generate', prompt: this.#prompt.value, options });
  }

  show(result: Result) {
    if (result.kind === 'token') {
      const { prompt, ...token } = result.token;
      this.#tokens.push(prompt ? { ...token, kind: 'prompt' } : token);
      if (!prompt) this.#speak(token.text);
    } else if (result.kind === 'done') {
      this.#done(result.summary);
    }
  }

  failed() {
    this.#tokens.flush();
  }

  #done(summary: Summary) {
    this.#tokens.flush();
    this.#speak('', true);
    const rate = (count: number, ms: number) => (ms > 0 ? `${((1000 * count) / ms).toFixed(1)} tokens/s` : '–');
    const parts = [
      `prefill ${rate(summary.promptTokens, summary.prefillMs)} (${summary.promptTokens} tokens)`,
      `decode ${rate(summary.newTokens - 1, summary.decodeMs)} (${summary.newTokens} tokens)`,
    ];
    if (!this.#greedy.checked) parts.push(`seed ${this.#seed}`);
    if (summary.stopped) parts.push('stopped');
    this.#speed.textContent = parts.join(' · ');
  }

  #speak(text: string, now = false) {
    this.#unspoken += text;
    if (!this.#unspoken || (!now && performance.now() - this.#spoken < SPEAK_EVERY_MS)) return;
    this.#page.speak(this.#unspoken);
    this.#spoken = performance.now();
    this.#unspoken = '';
  }
}
