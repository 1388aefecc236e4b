/** Says what may stand behind the masks of a text. */
import { bars, part, percent, seconds, stamp } from '../dom';
import type { Candidate, Filled, Info, Result } from '../protocol';
import { TokenView } from '../tokens';
import { type Page, type Task, layerNames, middle } from './task';

const TOP = 5;

export class Fill implements Task {
  readonly model = 'models/ui-fill/';
  readonly busy = 'filling';
  readonly #page: Page;
  readonly #form: HTMLFormElement;
  readonly #input: HTMLInputElement;
  readonly #run: HTMLButtonElement;
  readonly #view: HTMLElement;
  readonly #masks: HTMLElement;
  readonly #speed: HTMLElement;
  readonly #tokens: TokenView;
  /** How a text writes a mask. */
  #mask = '[MASK]';
  /** The text that is being filled, or was. */
  #text = '';

  constructor(root: HTMLElement, page: Page) {
    this.#page = page;
    this.#form = part(root, 'form');
    this.#input = part(root, 'input');
    this.#run = part(root, 'run');
    this.#view = part(root, 'filled');
    this.#masks = part(this.#view, 'masks');
    stamp(this.#view);
    this.#speed = part(this.#view, 'speed');
    this.#tokens = new TokenView(this.#view);
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    part(root, 'insert').addEventListener('click', () => this.#insert());
    for (const example of root.querySelectorAll<HTMLButtonElement>('[data-example]')) {
      example.addEventListener('click', () => {
        this.#input.value = example.textContent ?? '';
        this.run();
      });
    }
  }

  ready(info: Info) {
    this.#mask = info.mask ?? this.#mask;
    this.#view.hidden = false;
    this.#tokens.reset({ layers: layerNames(info.layers), experts: info.experts, initial: middle(info.layers) });
  }

  enable(idle: boolean) {
    this.#run.disabled = !idle;
  }

  run() {
    if (this.#run.disabled || !this.#form.reportValidity()) return;
    const text = this.#input.value;
    if (this.#page.start({ kind: 'fill', text, top: TOP })) this.#text = text;
  }

  show(result: Result) {
    if (result.kind !== 'filled') return;
    const { tokens, masks } = result.filled;
    const last = tokens.length - 1;
    this.#tokens.show(
      tokens.map(({ id, text, mask, heads }, index) => {
        if (mask) return { id, text, heads, kind: 'mask' };
        return index === last && !text ? { id, text, heads, kind: 'end' } : { id, text, heads };
      }),
    );
    this.#showMasks(masks);
    this.#speed.textContent = `${tokens.length} tokens in ${seconds(result.ms)}`;
    const best = masks.map(({ candidates: [first] }) => (first ? `${labelOf(first)}, ${percent(first.probability)}` : ''));
    this.#page.speak(best.join('; '));
  }

  /** The candidates of each mask; one that is clicked takes its place in the input. */
  #showMasks(masks: Filled['masks']) {
    const text = this.#text;
    const picked: (Candidate | undefined)[] = masks.map(() => undefined);
    const lists = masks.map(({ candidates }, mask) => {
      const figure = document.createElement('figure');
      const caption = document.createElement('figcaption');
      caption.textContent = masks.length > 1 ? `Mask ${mask + 1}` : 'The mask';
      const entries = candidates.map((candidate) => ({ ...candidate, label: labelOf(candidate) }));
      const list = bars(entries, (_, index) => {
        picked[mask] = candidates[index];
        this.#input.value = this.#put(text, picked);
        list.querySelectorAll('button').forEach((button, i) => button.setAttribute('aria-pressed', String(i === index)));
      });
      figure.append(caption, list);
      return figure;
    });
    this.#masks.replaceChildren(...lists);
  }

  /** The text with the picked candidates behind its masks. A mask swallows the spaces before it. */
  #put(text: string, picked: (Candidate | undefined)[]): string {
    const parts = text.split(this.#mask);
    return parts.reduce((before, after, index) => {
      const candidate = picked[index - 1];
      return candidate ? (before.trimEnd() + candidate.text).trimStart() + after : before + this.#mask + after;
    });
  }

  /** A mask at the cursor, in place of what is selected. */
  #insert() {
    const { value, selectionStart, selectionEnd } = this.#input;
    const start = selectionStart ?? value.length;
    this.#input.setRangeText(this.#mask, start, selectionEnd ?? start, 'end');
    this.#input.focus();
  }
}

/** A word as it is; the end of one marked as such. */
function labelOf({ text }: Candidate): string {
  return text.startsWith(' ') ? text.trim() || '␣' : /^\p{L}/u.test(text) ? `…${text}` : text;
}
