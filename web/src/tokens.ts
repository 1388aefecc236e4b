/** The text, each token coloured by the head experts of one layer, and its legend. */
import type { Info, Token } from './protocol';

/** Colours of the palette in style.css; expert 8 wears the first again, striped. */
const COLOURS = 8;

const colourOf = (expert: number) => String(expert % COLOURS);
const cycleOf = (expert: number) => String(Math.min(Math.floor(expert / COLOURS), 3));

/** "3 and 5" */
const list = (experts: number[]) => experts.join(' and ');

export class TokenView {
  readonly #output: HTMLElement;
  readonly #legend: HTMLElement;
  readonly #detail: HTMLElement;
  #tokens: { token: Token; span: HTMLElement }[] = [];
  #pending: Token[] = [];
  #frame = 0;
  #layer = 0;
  #experts = 0;
  #only: number | undefined; // the expert picked in the legend
  #current: number | undefined; // the token picked in the text

  constructor(output: HTMLElement, legend: HTMLElement, detail: HTMLElement) {
    this.#output = output;
    this.#legend = legend;
    this.#detail = detail;
    output.addEventListener('keydown', (event) => this.#onKey(event));
    output.addEventListener('pointerover', (event) => this.#onPoint(event));
  }

  /** A model was loaded: a legend of its experts, no text. */
  reset(info: Info) {
    this.#experts = info.experts;
    this.#only = undefined;
    const buttons = Array.from({ length: info.experts }, (_, expert) => this.#legendButton(expert));
    this.#legend.replaceChildren(...buttons);
    this.clear();
  }

  clear() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#tokens = [];
    this.#pending = [];
    this.#pick(undefined);
    this.#output.replaceChildren();
    this.#showShares();
  }

  /** Appends a token, with the others of the same frame. */
  push(token: Token) {
    this.#pending.push(token);
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Shows what `push` has collected now. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const atEnd = this.#output.scrollHeight - this.#output.scrollTop - this.#output.clientHeight < 40;
    for (const token of this.#pending) {
      const span = document.createElement('span');
      span.textContent = token.text;
      span.dataset.id = String(token.id);
      span.dataset.prompt = String(token.prompt);
      this.#tokens.push({ token, span });
      this.#paint(token, span);
      this.#output.append(span);
    }
    this.#pending = [];
    this.#showShares();
    if (atEnd) this.#output.scrollTop = this.#output.scrollHeight;
  }

  showLayer(layer: number) {
    this.#layer = layer;
    for (const { token, span } of this.#tokens) this.#paint(token, span);
    this.#showShares();
    this.#pick(this.#current);
  }

  #paint(token: Token, span: HTMLElement) {
    const heads = token.heads[this.#layer] ?? [];
    const [first, second] = heads;
    setOrDelete(span, 'back', first === undefined ? undefined : colourOf(first));
    setOrDelete(span, 'backCycle', first === undefined ? undefined : cycleOf(first));
    setOrDelete(span, 'line', second === undefined ? undefined : colourOf(second));
    setOrDelete(span, 'lineCycle', second === undefined ? undefined : cycleOf(second));
    span.classList.toggle('faded', this.#only !== undefined && !heads.includes(this.#only));
    span.title = describe(token);
  }

  #legendButton(expert: number): HTMLElement {
    const button = document.createElement('button');
    button.type = 'button';
    button.dataset.expert = String(expert);
    button.setAttribute('aria-pressed', 'false');
    button.title = `Show only the tokens that use head expert ${expert}`;
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.dataset.back = swatch.dataset.line = colourOf(expert);
    swatch.dataset.backCycle = swatch.dataset.lineCycle = cycleOf(expert);
    const share = document.createElement('span');
    share.className = 'share';
    button.append(swatch, `expert ${expert}`, share);
    button.addEventListener('click', () => {
      this.#only = this.#only === expert ? undefined : expert;
      for (const other of this.#legend.querySelectorAll<HTMLElement>('button')) {
        other.setAttribute('aria-pressed', String(other.dataset.expert === String(this.#only)));
      }
      this.showLayer(this.#layer);
    });
    return button;
  }

  /** How many of the tokens use each expert. */
  #showShares() {
    const counts = new Array<number>(this.#experts).fill(0);
    for (const { token } of this.#tokens) {
      for (const expert of token.heads[this.#layer] ?? []) counts[expert] = (counts[expert] ?? 0) + 1;
    }
    const total = this.#tokens.length;
    this.#legend.querySelectorAll('.share').forEach((share, expert) => {
      share.textContent = total ? `${Math.round((100 * (counts[expert] ?? 0)) / total)} %` : '';
    });
  }

  #onKey(event: KeyboardEvent) {
    const last = this.#tokens.length - 1;
    const at = this.#current;
    const next = {
      ArrowRight: at === undefined ? 0 : Math.min(at + 1, last),
      ArrowLeft: at === undefined ? last : Math.max(at - 1, 0),
      Home: 0,
      End: last,
    }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    this.#pick(next);
    this.#tokens[next]?.span.scrollIntoView({ block: 'nearest' });
  }

  #onPoint(event: PointerEvent) {
    const index = this.#tokens.findIndex(({ span }) => span === event.target);
    if (index >= 0) this.#pick(index);
  }

  #pick(index: number | undefined) {
    if (this.#current !== undefined) this.#tokens[this.#current]?.span.classList.remove('current');
    const picked = index === undefined ? undefined : this.#tokens[index];
    this.#current = picked && index;
    picked?.span.classList.add('current');
    const heads = picked?.token.heads[this.#layer];
    this.#detail.textContent = picked
      ? `${quote(picked.token)}: head experts ${list(heads ?? [])} in layer ${this.#layer}`
      : 'Point at a token, or move through the text with the arrow keys.';
  }
}

const quote = (token: Token) => JSON.stringify(token.text);

function describe(token: Token): string {
  const layers = token.heads.map((heads, layer) => `layer ${layer}: head experts ${list(heads)}`);
  return [`${quote(token)}, token ${token.id}${token.prompt ? ' of the prompt' : ''}`, ...layers].join('\n');
}

function setOrDelete(element: HTMLElement, key: string, value: string | undefined) {
  if (value === undefined) delete element.dataset[key];
  else element.dataset[key] = value;
}
