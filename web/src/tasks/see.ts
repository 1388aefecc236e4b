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
  readonly #classes: HTMLElement;
  readonly #speed: HTMLElement;
  readonly #tokens: TokenView;
  /** Head experts that all tokens use, and which therefore tell nothing. */
  #shared = 0;
  #pen: { x: number; y: number } | undefined;
  #opening: Promise<unknown> | undefined; // the image that was picked last
  #fromFile = false; // whether the picture is a file's
  #stale = false; // the picture has changed since it was last classified
  #looked = ''; // the address of the picture that is being classified, or was

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
    this.#clear();

    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    part(root, 'clear').addEventListener('click', () => this.#clear());
    for (const example of root.querySelectorAll<HTMLButtonElement>('[data-example]')) {
      example.addEventListener('click', () => {
        const image = example.querySelector('img');
        if (image) this.#open(image.decode().then(() => createImageBitmap(image)), image.alt, false);
      });
    }
    const file = part<HTMLInputElement>(root, 'file');
    const choose = ([file]: Iterable<File>) => {
      if (file) this.#open(createImageBitmap(file), file.name, true);
    };
    file.addEventListener('click', () => (file.value = '')); // the same file may be chosen again
    file.addEventListener('change', () => choose(file.files ?? []));
    this.#invert.addEventListener('change', () => {
      if (!this.#fromFile) return;
      this.#flip();
      this.run();
    });
    // Wherever it falls: a browser would leave the page for a file that is dropped.
    const drop = (event: DragEvent) => {
      if (!root.hidden && event.dataTransfer?.types.includes('Files')) event.preventDefault();
      if (event.defaultPrevented && event.type === 'drop') choose(event.dataTransfer?.files ?? []);
    };
    document.addEventListener('dragover', drop);
    document.addEventListener('drop', drop);
    this.#picture.addEventListener('pointerdown', (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      this.#picture.setPointerCapture(event.pointerId);
      this.#pen = undefined;
      this.#draw(event);
    });
    this.#picture.addEventListener('pointermove', (event) => {
      if (this.#picture.hasPointerCapture(event.pointerId)) this.#draw(event);
    });
    this.#picture.addEventListener('lostpointercapture', () => this.run());
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
    if (this.#page.start({ kind: 'classify', image: this.#pixels(), top: TOP })) this.#looked = this.#picture.toDataURL();
  }

  failed() {
    this.#stale = false;
  }

  show(result: Result) {
    if (result.kind !== 'classified') return;
    const { classes, side, tokens } = result.classification;
    this.#view.style.setProperty('--side', String(side));
    this.#view.style.setProperty('--picture', `url("${this.#looked}")`);
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
    this.#opening = undefined;
    this.#fromFile = this.#stale = false;
  }

  /** The middle square of an image becomes the picture, unless another was picked by the time that it is there. */
  #open(opening: Promise<ImageBitmap>, name: string, file: boolean) {
    this.#opening = opening;
    const latest = () => this.#opening === opening;
    opening.then(
      (image) => latest() && this.#take(image, file),
      () => latest() && this.#page.complain(this, `${name} is not an image that this browser can read.`),
    );
  }

  #take(image: ImageBitmap, file: boolean) {
    const { width, height } = image;
    const side = Math.min(width, height);
    const { width: across, height: down } = this.#picture;
    this.#clear();
    this.#context.imageSmoothingQuality = 'high';
    this.#context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, across, down);
    this.#fromFile = file;
    if (file && this.#invert.checked) this.#flip();
    this.run();
  }

  /** Bright becomes dark. */
  #flip() {
    this.#context.globalCompositeOperation = 'difference';
    this.#context.fillStyle = '#fff';
    this.#context.fillRect(0, 0, this.#picture.width, this.#picture.height);
    this.#context.globalCompositeOperation = 'source-over';
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
