/** What the page and the engine's worker say to each other. */
import type {
  Classification, Filled, Generate, Info, LoadOptions, Sampling, SelftestOptions, SelftestReport, SelftestRow, Token, Translate,
  Translation,
} from './engine_types';

export type {
  Candidate, Classification, Filled, Generated, Info, LoadOptions, Piece, SelftestOptions, SelftestReport, SelftestRow, Token,
  Translation,
} from './engine_types';

/** How to choose the next token. What options leave out is as the library has it. */
export type Options = Partial<Omit<Generate, 'sampling'>> & { sampling: Partial<Sampling> };

/** The tasks, in the order of the page's tabs. */
export type TaskName = 'write' | 'translate' | 'fill' | 'see';

/** Head experts: `heads[layer][slot]`. */
export type Heads = number[][];

/** An image of one byte (grey) or three a pixel, row by row. */
export interface Pixels {
  width: number;
  height: number;
  channels: number;
  pixels: Uint8Array;
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
export type Lack = 'insecure' | 'webgpu' | 'adapter' | 'wasm';

/** What a task asks of the loaded model. */
export type Work =
  | { kind: 'generate'; prompt: string; options: Options }
  | { kind: 'translate'; text: string; options: Partial<Translate> }
  | { kind: 'fill'; text: string; top: number }
  | { kind: 'classify'; image: Pixels; top: number };

/** `load` frees the model that was loaded before. */
export type Request =
  | Work
  | { kind: 'load'; base: string; options: LoadOptions }
  | { kind: 'selftest'; options: SelftestOptions }
  | { kind: 'stop' }
  | { kind: 'ping' };

/** What a task gets back; all but a token end the work. */
export type Result =
  | { kind: 'token'; token: Token }
  | { kind: 'done'; summary: Summary }
  | { kind: 'translated'; translation: Translation; ms: number }
  | { kind: 'filled'; filled: Filled; ms: number }
  | { kind: 'classified'; classification: Classification; ms: number };

export type Reply =
  | Result
  | { kind: 'unsupported'; lack: Lack }
  | { kind: 'progress'; done: number; total: number }
  | { kind: 'ready'; info: Info }
  | { kind: 'testing'; adapter: string }
  | { kind: 'row'; row: SelftestRow }
  | { kind: 'tested'; report: SelftestReport }
  | { kind: 'failed'; message: string }
  | { kind: 'pong' };
