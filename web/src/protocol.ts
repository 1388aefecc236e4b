/** What the page and the engine's worker say to each other. */

/** The tasks, in the order of the page's tabs. */
export type TaskName = 'write' | 'translate' | 'fill' | 'see';

export interface LoadOptions {
  /** Which shape of the hot kernels to run; measured where it is missing. */
  kernels?: string;
  /** The `remembered` of an earlier load, which is not measured again. */
  remembered?: string;
}

/** How to choose the next token; a temperature of 0 takes the likeliest. */
export interface Options {
  max_new: number;
  sampling: { temperature: number; top_k?: number; top_p?: number; seed?: number };
}

/** The loaded model, and the adapter it runs on. */
export interface Info {
  family: string;
  task: string;
  layers: number;
  /** Layers that read a translation's source. */
  encoder_layers: number;
  experts: number;
  /** Experts that each token uses in each layer, and how many of them all tokens use: the first ones. */
  active: number;
  shared: number;
  /** How a text writes its masks, where the model fills them. */
  mask: string | null;
  context: number;
  adapter: { name: string; backend: string; type: string };
  /** The smallest and the largest subgroup, where kernels may use them. */
  subgroups: [number, number] | null;
  /** The variant that runs of each kernel that has more than one. */
  kernels: Record<string, string>;
  /** What to hand to the next load, where the kernels were measured. */
  remembered: string | null;
}

/** Head experts: `heads[layer][slot]`. */
export type Heads = number[][];

/** One token of the prompt or of the continuation. */
export interface Token {
  id: number;
  /** The text it adds; empty while a character is incomplete. */
  text: string;
  prompt: boolean;
  heads: Heads;
}

/** One token of a source, of a translation, or of a text with masks. */
export interface Piece {
  id: number;
  /** The text it adds; nothing where it ends the text. */
  text: string;
  mask: boolean;
  heads: Heads;
  /** The experts that attend to the source of a translation. */
  cross: Heads;
}

export interface Translation {
  text: string;
  /** Σ log p over the length penalty. */
  score: number;
  source: Piece[];
  target: Piece[];
}

/** A token that may stand behind a mask; its text begins with a space where it begins a word. */
export interface Candidate {
  id: number;
  text: string;
  probability: number;
}

export interface Filled {
  tokens: Piece[];
  masks: { position: number; candidates: Candidate[] }[];
}

export interface Classification {
  classes: { id: number; label: string; probability: number }[];
  /** Patches of the image's side. */
  side: number;
  /** The class token, then the patches row by row. */
  tokens: Heads[];
}

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

/** What the selftest found so far of one kernel in one variant, one property of the driver, or a text. */
export interface SelftestRow {
  kernel: string;
  variant: string;
  status: 'ok' | 'wrong' | 'failed' | 'refused' | 'note';
  /** Inputs that were tried. */
  cases: number;
  /** The error that is nearest to its limit, or farthest beyond it. */
  error: number | null;
  limit: number;
  /** Why it is not ok, or what was found. */
  remark: string | null;
  seconds: number;
}

/** What the selftest found; what the page does not read of it is in its JSON all the same. */
export interface SelftestReport {
  version: string;
  ok: boolean;
  adapter: { name: string; backend: string };
  rows: SelftestRow[];
  seconds: number;
}

/** Which kernels the text of the selftest is written with, and where the demo model lies. */
export interface SelftestOptions {
  kernels?: string;
  model: string;
}

/** Why this browser cannot run the engine. */
export type Lack = 'insecure' | 'webgpu' | 'adapter' | 'wasm';

/** What a task asks of the loaded model. */
export type Work =
  | { kind: 'generate'; prompt: string; options: Options }
  | { kind: 'translate'; text: string; options: { beams: number } }
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
