/** What the page and the engine's worker say to each other. */

/** How to pick the next token. */
export interface Options {
  max_new: number;
  greedy: boolean;
  temperature?: number;
  top_k?: number;
  top_p?: number;
  seed?: number;
}

/** The loaded model, and the adapter it runs on. */
export interface Info {
  family: string;
  layers: number;
  experts: number;
  /** Experts that each token uses in each layer. */
  active: number;
  context: number;
  adapter: { name: string; backend: string; type: string };
}

/** One token of the prompt or of the continuation. */
export interface Token {
  id: number;
  /** The text it adds; empty while a character is incomplete. */
  text: string;
  prompt: boolean;
  /** The head experts it used: `heads[layer][slot]`. */
  heads: number[][];
}

/** One finished generation. */
export interface Summary {
  promptTokens: number;
  newTokens: number;
  /** From the call to the first new token. */
  prefillMs: number;
  /** From the first new token to the last. */
  decodeMs: number;
  stopped: boolean;
}

/** Why this browser cannot run the engine. */
export type Lack = 'insecure' | 'webgpu' | 'adapter';

export type Request =
  | { kind: 'load'; base: string }
  | { kind: 'generate'; prompt: string; options: Options }
  | { kind: 'stop' }
  | { kind: 'ping' };

export type Reply =
  | { kind: 'unsupported'; lack: Lack }
  | { kind: 'progress'; done: number; total: number }
  | { kind: 'ready'; info: Info }
  | { kind: 'token'; token: Token }
  | { kind: 'done'; summary: Summary }
  | { kind: 'failed'; message: string }
  | { kind: 'pong' };
