/** Tokens, each coloured by the head experts of one layer, and the legend of these. */
import { part } from './dom';
import type { Heads } from './protocol';

/** Colours of the palette in style.css; expert 8 wears the first again, striped. */
const COLOURS = 8;

const colourOf = (expert: number) => String(expert % COLOURS);
const cycleOf = (expert: number) => String(Math.min(Math.floor(expert / COLOURS), 3));

/** "3, 5 and 7" */
const list = (experts: number[]) => [experts.slice(0, -1).join(', '), ...experts.slice(-1).map(String)].filter(Boolean).join(' and ');

/** A token to show. */
export interface Shown {
  id: number;
  text: string;
  /** What to call it where its text would not do. */
  name?: string;
  kind?: 'prompt' | 'mask' | 'end';
  /** For each of the view's layers. */
  heads: Heads;
}

/** What there is to colour by. */
export interface Palette {
  /** The layers, by name. */
  layers: string[];
  experts: number;
  /** The first expert of the legend; those before it are not shown. */
  first?: number;
  /** The layer to begin with. */
  initial: number;
}

export class TokenView {
  readonly #output: HTMLElement;
  readonly #legend: HTMLElement;
  readonly #detail: HTMLElement;
  readonly #select: HTMLSelectElement;
  #tokens: { token: Shown; span: HTMLElement }[] = [];
  #pending: Shown[] = [];
  #frame = 0;
  #layers: string[] = [];
  #layer = 0;
  #experts = 0;
  #only: number | undefined; // the expert picked in the legend
  #current: number | undefined; // the token picked in the text

  /** In the parts `output`, `legend`, `detail` and `layer` of an element. */
  constructor(root: ParentNode) {
    this.#output = part(root, 'output');
    this.#legend = part(root, 'legend');
    this.#detail = part(root, 'detail');
    this.#select = part<HTMLSelectElement>(root, 'layer');
    this.#output.addEventListener('keydown', (event) => this.#onKey(event));
    this.#output.addEventListener('pointerover', (event) => this.#onPoint(event));
    this.#select.addEventListener('change', () => this.#showLayer(this.#select.selectedIndex));
  }

  /** A model was loaded. What is shown stays where it is the same model as before. */
  reset({ layers, experts, first = 0, initial }: Palette) {
    if (this.#experts === experts && String(this.#layers) === String(layers)) return;
    this.#layers = layers;
    this.#experts = experts;
    this.#only = undefined;
    this.#select.replaceChildren(...layers.map((name, layer) => new Option(name, String(layer))));
    this.#select.selectedIndex = this.#layer = initial;
    this.#select.disabled = false;
    const buttons = Array.from({ length: experts - first }, (_, index) => this.#legendButton(first + index));
    this.#legend.replaceChildren(...buttons);
    this.clear();
  }

  /** Shows these tokens in place of the others. */
  show(tokens: Shown[]) {
    this.clear();
    this.#pending = tokens;
    this.flush();
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
  push(token: Shown) {
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
      span.textContent = token.kind === 'end' ? '↵' : token.text;
      span.dataset.id = String(token.id);
      if (token.kind) span.dataset.kind = token.kind;
      this.#tokens.push({ token, span });
      this.#paint(token, span);
      this.#output.append(span);
    }
    this.#pending = [];
    this.#showShares();
    if (atEnd) this.#output.scrollTop = this.#output.scrollHeight;
  }

  #showLayer(layer: number) {
    this.#layer = layer;
    for (const { token, span } of this.#tokens) this.#paint(token, span);
    this.#showShares();
    this.#pick(this.#current);
  }

  #paint(token: Shown, span: HTMLElement) {
    const heads = token.heads[this.#layer] ?? [];
    const [first, second] = heads;
    setOrDelete(span, 'back', first === undefined ? undefined : colourOf(first));
    setOrDelete(span, 'backCycle', first === undefined ? undefined : cycleOf(first));
    setOrDelete(span, 'line', second === undefined ? undefined : colourOf(second));
    setOrDelete(span, 'lineCycle', second === undefined ? undefined : cycleOf(second));
    span.dataset.experts = heads.join(' ');
    span.classList.toggle('faded', this.#only !== undefined && !heads.includes(this.#only));
    span.title = this.#describe(token);
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
      this.#showLayer(this.#layer);
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
    this.#legend.querySelectorAll<HTMLElement>('button').forEach((button) => {
      const share = button.querySelector('.share');
      const expert = Number(button.dataset.expert);
      if (share) share.textContent = total ? `${Math.round((100 * (counts[expert] ?? 0)) / total)} %` : '';
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
      ? `${nameOf(picked.token)}: head experts ${list(heads ?? []) || 'none'} in ${this.#layers[this.#layer]}`
      : 'Point at a token, or move through them with the arrow keys.';
  }

  #describe(token: Shown): string {
    const layers = token.heads.map((heads, layer) => `${this.#layers[layer]}: head experts ${list(heads) || 'none'}`);
    return [`${nameOf(token)}${token.kind === 'prompt' ? ' of the prompt' : ''}`, ...layers].join('\n');
  }
}

function nameOf({ id, text, name, kind }: Shown): string {
  if (name) return name;
  return kind === 'end' ? `end of the text, token ${id}` : `${JSON.stringify(text)}, token ${id}`;
}

function setOrDelete(element: HTMLElement, key: string, value: string | undefined) {
  if (value === undefined) delete element.dataset[key];
  else element.dataset[key] = value;
}
