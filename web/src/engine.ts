/** The page's end of the worker: starts it, and tells when it has died or gone silent. */
import type { LoadOptions, Reply, Request } from './protocol';
import script from './worker.ts?worker&url';

const PING_EVERY_MS = 5_000;
const SILENT_AFTER_MS = 30_000;

export interface Listener {
  reply(reply: Reply): void;
  /** The worker is gone; only `restart` helps. */
  died(message: string): void;
  /** The worker has not answered for a while, or answers again. */
  silent(silent: boolean): void;
}

export class EngineWorker {
  readonly #listener: Listener;
  readonly #options: () => LoadOptions;
  #worker: Worker | undefined;
  #unanswered: number | undefined; // when the oldest ping without an answer was sent
  #silent = false; // whether the listener was told so

  constructor(listener: Listener, options: () => LoadOptions) {
    this.#listener = listener;
    this.#options = options;
    setInterval(() => this.#check(), PING_EVERY_MS);
  }

  /** Ends the worker, if any, with all it holds on the GPU, and loads a model in a new one. */
  restart(base: string) {
    this.stop();
    const worker = new Worker(script, { type: 'module' });
    this.#worker = worker;
    worker.addEventListener('message', ({ data }: MessageEvent<Reply>) => {
      if (worker !== this.#worker) return; // of a worker that was replaced
      this.#unanswered = undefined;
      if (this.#silent) this.#listener.silent((this.#silent = false));
      if (data.kind !== 'pong') this.#listener.reply(data);
    });
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      if (worker !== this.#worker) return;
      this.stop();
      this.#listener.died(event.message || `${new URL(script, location.href)} could not be loaded`);
    });
    this.#load(base);
  }

  /** Loads another model in place of the one that is loaded; a worker that is busy cannot. */
  load(base: string) {
    if (this.#worker) this.#load(base);
    else this.restart(base);
  }

  send(request: Request) {
    this.#worker?.postMessage(request);
  }

  /** Ends the worker. */
  stop() {
    this.#worker?.terminate();
    this.#worker = undefined;
    this.#unanswered = undefined;
    this.#silent = false;
  }

  #load(base: string) {
    this.send({ kind: 'load', base, options: this.#options() });
  }

  #check() {
    if (!this.#worker) return;
    if (this.#unanswered === undefined) {
      this.#unanswered = Date.now();
      this.send({ kind: 'ping' });
    } else if (Date.now() - this.#unanswered > SILENT_AFTER_MS && !this.#silent) {
      this.#listener.silent((this.#silent = true));
    }
  }
}
