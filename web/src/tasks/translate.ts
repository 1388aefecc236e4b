/** Translates a line of text. */
import { part, seconds, stamp } from '../dom';
import type { Info, Piece, Result } from '../protocol';
import { TokenView, type Shown } from '../tokens';
import { type Page, type Task, layerNames, middle } from './task';

const BEAMS = 4;

export class Translate implements Task {
  readonly model = 'models/ui-en-de/';
  readonly busy = 'translating';
  readonly #page: Page;
  readonly #form: HTMLFormElement;
  readonly #input: HTMLInputElement;
  readonly #beams: HTMLInputElement;
  readonly #run: HTMLButtonElement;
  readonly #views: HTMLElement[];
  readonly #source: TokenView;
  readonly #target: TokenView;
  readonly #speed: HTMLElement;

  constructor(root: HTMLElement, page: Page) {
    this.#page = page;
    this.#form = part(root, 'form');
    this.#input = part(root, 'input');
    this.#beams = part(root, 'beams');
    this.#run = part(root, 'run');
    const [target, source] = (this.#views = [part(root, 'target'), part(root, 'source')]) as [HTMLElement, HTMLElement];
    stamp(target);
    stamp(source);
    this.#target = new TokenView(target);
    this.#source = new TokenView(source);
    this.#speed = part(target, 'speed');
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    for (const example of root.querySelectorAll<HTMLButtonElement>('[data-example]')) {
      example.addEventListener('click', () => {
        this.#input.value = example.textContent ?? '';
        this.run();
      });
    }
  }

  ready(info: Info) {
    const { experts, layers, encoder_layers: encoder } = info;
    for (const view of this.#views) view.hidden = false;
    this.#source.reset({ layers: layerNames(encoder, 'encoder layer'), experts, initial: middle(encoder) });
    const cross = layerNames(layers, 'cross-attention, layer');
    const own = layerNames(layers, 'self-attention, layer');
    this.#target.reset({ layers: [...cross, ...own], experts, initial: middle(layers) });
  }

  enable(idle: boolean) {
    this.#run.disabled = !idle;
  }

  run() {
    if (this.#run.disabled || !this.#form.reportValidity()) return;
    const options = { beams: this.#beams.checked ? BEAMS : 1 };
    this.#page.start({ kind: 'translate', text: this.#input.value, options });
  }

  show(result: Result) {
    if (result.kind !== 'translated') return;
    const { text, score, source, target } = result.translation;
    // A source always has its end; a translation that was cut off has none.
    const end = source.at(-1)?.id;
    const shown = ({ id, text }: Piece): Omit<Shown, 'heads'> => (id === end ? { id, text, kind: 'end' } : { id, text });
    this.#source.show(source.map((piece) => ({ ...shown(piece), heads: piece.heads })));
    this.#target.show(target.map((piece) => ({ ...shown(piece), heads: [...piece.cross, ...piece.heads] })));
    this.#speed.textContent = `${target.length} tokens in ${seconds(result.ms)} · score ${score.toFixed(2)}`;
    this.#page.speak(text);
  }
}
