// Written by the test of crates/web/src/types.rs; do not edit.

/**
 * How to load.
 */
export type LoadOptions = {
/**
 * The name of a `KernelChoice`: which variant of the hot kernels runs. Measured where it is missing.
 */
kernels?: string,
/**
 * The `remembered` of an earlier load, which is not measured again.
 */
remembered?: string, };

/**
 * How to generate. What is missing keeps the library's default.
 */
export type Options = { max_new?: number, greedy?: boolean, temperature?: number, top_k?: number, top_p?: number, seed?: number,
/**
 * Texts end before these.
 */
stop?: Array<string>, repetition_penalty?: number, presence_penalty?: number, frequency_penalty?: number,
/**
 * By token id; numbers of JSON are finite, so -1e38 bans.
 */
logit_bias?: { [key in number]: number }, };

/**
 * How to translate. What is missing keeps the library's default.
 */
export type TranslateOptions = { beams?: number, max_new?: number, };

/**
 * The loaded model, and where it runs.
 */
export type Info = { family: string, task: string, layers: number,
/**
 * Layers that read a translation's source.
 */
encoder_layers: number, experts: number,
/**
 * Experts that each token uses in each layer.
 */
active: number,
/**
 * How many of the active ones all tokens use: the first.
 */
shared: number,
/**
 * How a text writes its masks, where the model fills them.
 */
mask: string | null, context: number, parameters: number, adapter: Adapter,
/**
 * The smallest and the largest subgroup, where kernels may use them.
 */
subgroups: [number, number] | null,
/**
 * The variant that runs of each kernel that has more than one.
 */
kernels: { [key in string]: string },
/**
 * What to hand to the next load, where the kernels were measured.
 */
remembered: string | null, };

/**
 * The adapter that a model runs on, as far as the browser tells.
 */
export type Adapter = { name: string, backend: string, type: string, };

/**
 * One token of the prompt or of the continuation.
 */
export type Token = { id: number,
/**
 * The text it adds; empty while a character is incomplete.
 */
text: string, prompt: boolean,
/**
 * `[layer][slot]`, as everywhere.
 */
heads: Array<Array<number>>, };

/**
 * What was generated.
 */
export type Generated = { prompt_tokens: number, new_tokens: number, text: string, stopped: StopReason | null, };

/**
 * Why a sequence ended.
 */
export type StopReason = "max-new" | "stop-token" | "stop-string" | "context" | "cancelled";

/**
 * One token of a source, of a translation, or of a text with masks.
 */
export type Piece = { id: number,
/**
 * The text it adds; nothing where it ends the text.
 */
text: string, mask: boolean, heads: Array<Array<number>>,
/**
 * The experts that attend to the source of a translation.
 */
cross: Array<Array<number>>, };

/**
 * A translation, and the tokens of both sides.
 */
export type Translation = { text: string,
/**
 * Σ log p over the length penalty.
 */
score: number, source: Array<Piece>, target: Array<Piece>, };

/**
 * A text with masks, and what may stand behind each. A candidate's text begins with a space where it begins a word.
 */
export type Filled = { tokens: Array<Piece>, masks: Array<FilledMask>, };

/**
 * A mask and what may stand behind it.
 */
export type FilledMask = {
/**
 * Its place among the ids.
 */
position: number,
/**
 * The likeliest first.
 */
candidates: Array<Candidate>, };

/**
 * A token that may stand behind a mask.
 */
export type Candidate = {
/**
 * Its id.
 */
id: number,
/**
 * Its text; empty when filling ids.
 */
text: string,
/**
 * How likely it is.
 */
probability: number, };

/**
 * What an image shows.
 */
export type Classification = { classes: Array<Class>,
/**
 * Patches of the image's side.
 */
side: number,
/**
 * The class token, then the patches row by row.
 */
tokens: Array<Array<Array<number>>>, };

/**
 * A class that an image may belong to.
 */
export type Class = {
/**
 * Its number.
 */
id: number,
/**
 * Its name.
 */
label: string,
/**
 * How likely it is.
 */
probability: number, };
