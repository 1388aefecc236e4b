/** Says what a small picture shows. */
import { bars, part, percent, seconds, stamp } from '../dom';
import type { Info, Pixels, Result } from '../protocol';
import { TokenView } from '../tokens';
import { type Page, type Task, layerNames, middle } from './task';

const TOP = 5;

export class See implements Task {
  readonly model = 'models/fashion/';
  readonly busy = 'looking';
  readonly #page: Page;
  readonly #picture: HTMLCanvasElement;
  readonly #context: CanvasRenderingContext2D;
  readonly #invert: HTMLInputElement;
  readonly #run: HTMLButtonElement;
  readonly #view: HTMLElement;
  readonly #seen: HTMLCanvasElement;
  readonly #classes: HTMLElement;
  readonly #speed: HTMLElement;
  readonly #tokens: TokenView;
  /** Head experts that all tokens use, and which therefore tell nothing. */
  #shared = 0;
  #pen: { x: number; y: number } | undefined;
  #stale = false; // the picture has changed since it was last classified

  constructor(root: HTMLElement, page: Page) {
    this.#page = page;
    const form = part<HTMLFormElement>(root, 'form');
    this.#picture = part(root, 'picture');
    const context = this.#picture.getContext('2d', { willReadFrequently: true });
    if (!context) throw new Error('the browser has no canvas');
    this.#context = context;
    this.#invert = part(root, 'invert');
    this.#run = part(root, 'run');
    this.#view = part(root, 'seen');
    this.#classes = part(this.#view, 'classes');
    stamp(this.#view);
    this.#speed = part(this.#view, 'speed');
    this.#tokens = new TokenView(this.#view);
    this.#seen = document.createElement('canvas');
    this.#seen.setAttribute('aria-hidden', 'true');
    const output = part(this.#view, 'output');
    const frame = document.createElement('div');
    frame.className = 'patches';
    output.replaceWith(frame);
    frame.append(this.#seen, output);
    this.#clear();

    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    part(root, 'clear').addEventListener('click', () => this.#clear());
    for (const example of root.querySelectorAll<HTMLButtonElement>('[data-example]')) {
      example.addEventListener('click', () => {
        const image = example.querySelector('img');
        if (image) void image.decode().then(() => this.#take(image, image.naturalWidth, image.naturalHeight, false));
      });
    }
    const file = part<HTMLInputElement>(root, 'file');
    file.addEventListener('change', () => this.#open(file.files?.[0]));
    root.addEventListener('dragover', (event) => event.preventDefault());
    root.addEventListener('drop', (event) => {
      event.preventDefault();
      this.#open(event.dataTransfer?.files[0]);
    });
    this.#picture.addEventListener('pointerdown', (event) => {
      this.#picture.setPointerCapture(event.pointerId);
      this.#pen = undefined;
      this.#draw(event);
    });
    this.#picture.addEventListener('pointermove', (event) => {
      if (event.buttons) this.#draw(event);
    });
    this.#picture.addEventListener('pointerup', () => this.run());
  }

  ready(info: Info) {
    this.#view.hidden = false;
    this.#shared = info.shared;
    const { layers, experts, shared } = info;
    this.#tokens.reset({ layers: layerNames(layers), experts, first: shared, initial: middle(layers) });
  }

  enable(idle: boolean) {
    this.#run.disabled = !idle;
    if (idle && this.#stale) this.run();
  }

  run() {
    // A picture that changes while the model works waits for its turn.
    this.#stale = this.#run.disabled;
    if (this.#stale) return;
    if (!this.#page.start({ kind: 'classify', image: this.#pixels(), top: TOP })) return;
    const { width, height } = this.#picture;
    Object.assign(this.#seen, { width, height });
    this.#seen.getContext('2d')?.drawImage(this.#picture, 0, 0);
  }

  failed() {
    this.#stale = false;
  }

  show(result: Result) {
    if (result.kind !== 'classified') return;
    const { classes, side, tokens } = result.classification;
    this.#view.style.setProperty('--side', String(side));
    this.#tokens.show(
      tokens.map((heads, index) => {
        const routed = heads.map((slots) => slots.slice(this.#shared));
        if (index === 0) return { id: index, text: 'class token', name: 'the class token', heads: routed };
        const [row, column] = [Math.floor((index - 1) / side) + 1, ((index - 1) % side) + 1];
        return { id: index, text: '', name: `the patch in row ${row}, column ${column}`, heads: routed };
      }),
    );
    this.#classes.replaceChildren(bars(classes));
    this.#speed.textContent = `${tokens.length} tokens in ${seconds(result.ms)}`;
    const [first] = classes;
    if (first) this.#page.speak(`${first.label}, ${percent(first.probability)}`);
  }

  #clear() {
    this.#context.fillStyle = '#000';
    this.#context.fillRect(0, 0, this.#picture.width, this.#picture.height);
  }

  #open(file: File | undefined) {
    if (!file) return;
    createImageBitmap(file).then(
      (image) => this.#take(image, image.width, image.height, this.#invert.checked),
      () => this.#page.complain(`${file.name} is not an image that this browser can read.`),
    );
  }

  /** The middle square of an image becomes the picture. */
  #take(image: CanvasImageSource, width: number, height: number, invert: boolean) {
    const side = Math.min(width, height);
    const { width: across, height: down } = this.#picture;
    this.#clear();
    this.#context.imageSmoothingQuality = 'high';
    this.#context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, across, down);
    if (invert) {
      this.#context.globalCompositeOperation = 'difference';
      this.#context.fillStyle = '#fff';
      this.#context.fillRect(0, 0, across, down);
      this.#context.globalCompositeOperation = 'source-over';
    }
    this.run();
  }

  #draw(event: PointerEvent) {
    const scale = this.#picture.width / this.#picture.clientWidth;
    const at = { x: event.offsetX * scale, y: event.offsetY * scale };
    const from = this.#pen ?? at;
    this.#context.strokeStyle = '#ddd';
    this.#context.lineWidth = 2.5;
    this.#context.lineCap = 'round';
    this.#context.beginPath();
    this.#context.moveTo(from.x, from.y);
    this.#context.lineTo(at.x, at.y);
    this.#context.stroke();
    this.#pen = at;
  }

  /** The picture as bytes: one a pixel where all are grey, else red, green and blue. */
  #pixels(): Pixels {
    const { width, height } = this.#picture;
    const { data } = this.#context.getImageData(0, 0, width, height);
    const value = (pixel: number, channel: number) => data[4 * pixel + channel] ?? 0;
    const count = width * height;
    const colours = Array.from({ length: count }, (_, pixel) => [0, 1, 2].map((channel) => value(pixel, channel)));
    const grey = colours.every(([r, g, b]) => r === g && g === b);
    const bytes = colours.flatMap((colour) => (grey ? colour.slice(0, 1) : colour));
    return { width, height, channels: grey ? 1 : 3, pixels: Uint8Array.from(bytes) };
  }
}
