/** The page's end of the worker: starts it, and tells when it has died or gone silent. */
import type { Reply, Request } from './protocol';
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
  #worker: Worker | undefined;
  #unanswered: number | undefined; // when the oldest ping without an answer was sent
  #silent = false; // whether the listener was told so

  constructor(listener: Listener) {
    this.#listener = listener;
    setInterval(() => this.#check(), PING_EVERY_MS);
  }

  /** Ends the worker, if any, with all it holds on the GPU, and asks a new one. */
  restart(request: Request) {
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
    this.send(request);
  }

  /** Asks the worker, or a new one where there is none. */
  ask(request: Request) {
    if (this.#worker) this.send(request);
    else this.restart(request);
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
