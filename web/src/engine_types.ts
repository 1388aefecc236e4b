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
 * How to generate.
 *
 * With serde these are fields that are named as the methods here are, those of [`Sampling`] in `sampling`, and `penalties` with
 * `repetition`, `presence`, `frequency` and `bias`, in which `null` bans a token; what is left out is as [`Generate::default`] has it.
 * A filter, a handle to cancel by and callbacks are left out.
 */
export type Generate = { max_new: number, sampling: Sampling, stop_at: Array<number> | null, stop: Array<string>, penalties: Penalties, logprobs: number | null, routes: boolean, };

/**
 * How the next token is chosen from a row of logits.
 */
export type Sampling = { temperature: number, top_k: number | null, top_p: number, seed: number, };

/**
 * How logits are changed before a token is chosen by them; for [`Session::set_penalties`]. In the order of the methods, with
 * `n` the times that the new text has a token: `logit / repetition` (`· repetition` below zero) where prompt or new text have it,
 * `− presence` where `n > 0`, `− n · frequency`, `+ bias`.
 *
 * With serde these are fields that are named as the methods here are; a bias of `null` bans a token.
 */
export type Penalties = { repetition: number, presence: number, frequency: number, bias: { [key in number]: number | null }, };

/**
 * How to translate.
 */
export type Translate = { beams: number, length_penalty: number, max_new: number, batch: number, routes: boolean, };

/**
 * How to score texts.
 */
export type Score = { cut: boolean, step_tokens: number | null, };

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
heads: Array<Array<number>>,
/**
 * `ln p` in nats, and the likeliest in its place, where the options ask for them.
 */
logprob?: number, top?: Array<TopToken>, };

/**
 * A token that might have come.
 */
export type TopToken = {
/**
 * Its id.
 */
id: number,
/**
 * What it would have added to the text, had that ended with it; empty where the model has no tokenizer.
 */
text: string,
/**
 * How likely the model found it, `ln p` in nats.
 */
logprob: number, };

/**
 * What was generated.
 */
export type Generated = { prompt_tokens: number, new_tokens: number, text: string, stopped: StopReason | null, };

/**
 * Why a sequence ended.
 */
export type StopReason = "max-new" | "stop-token" | "stop-string" | "context" | "cancelled";

/**
 * How likely a model finds a text.
 */
export type Scored = {
/**
 * The ids of the text.
 */
ids: Array<number>,
/**
 * `ln p` in nats of each id given those before it: of all but the first, before which there is nothing. Of fewer, the text's
 * first ones, where [`Cancel`] ended the work in its midst.
 */
logprobs: Array<number>, };

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

/**
 * What to test.
 */
export type SelftestOptions = {
/**
 * The name of a `KernelChoice`: with which kernels the text is written. Measured where it is missing.
 */
kernels?: string,
/**
 * The URL of the demo model's folder.
 */
model: string,
/**
 * A part of the names of the rows to test; all without it.
 */
filter?: string, };

/**
 * What [`Gpu::selftest`](crate::Gpu::selftest) found.
 */
export type SelftestReport = {
/**
 * headwise's version.
 */
version: string,
/**
 * Whether no row is wrong and none failed.
 */
ok: boolean,
/**
 * The adapter that was tested.
 */
adapter: Capabilities,
/**
 * The variant that headwise runs there of each kernel that has more than one.
 */
kernels: Array<[string, string]>,
/**
 * What was tested, in the order in which it was.
 */
rows: Array<SelftestRow>,
/**
 * Seconds of all.
 */
seconds: number, };

/**
 * One kernel in one variant, one property of the driver, or a model's text.
 */
export type SelftestRow = {
/**
 * The kernel, as its file in `shaders/` is named; `driver` and `text` for the others.
 */
kernel: string,
/**
 * Its variant, or what is looked at.
 */
variant: string,
/**
 * What became of it.
 */
status: SelftestStatus,
/**
 * Inputs that were tried.
 */
cases: number,
/**
 * The largest error in times of its limit belongs to this one: relative to the largest value, or to 1; the share of wrong
 * values where they must be exact. None where nothing was computed, or what was is no number.
 */
error: number | null,
/**
 * What that error may be.
 */
limit: number,
/**
 * Why it is not ok, or what was found.
 */
remark: string | null,
/**
 * Seconds that it took, compiling and the reference included.
 */
seconds: number, };

/**
 * What became of a row of a [`SelftestReport`].
 */
export type SelftestStatus = "ok" | "wrong" | "failed" | "refused" | "note";

/**
 * What a device can do, in our own words: filled from wgpu natively and in the browser.
 */
export type Capabilities = {
/**
 * Adapter name; browsers may leave it empty.
 */
name: string,
/**
 * Graphics API, e.g. `vulkan`, `metal`, `dx12`, `webgpu`.
 */
backend: string,
/**
 * `discrete`, `integrated`, `virtual`, `software` or `other`.
 */
kind: string,
/**
 * Driver name and version.
 */
driver: string,
/**
 * True for a CPU rasteriser, where register-tiled kernels beat workgroup memory.
 */
software: boolean,
/**
 * Smallest and largest subgroup size, when kernels may use subgroup operations.
 */
subgroups: [number, number] | null,
/**
 * Kernels may use 16-bit floats. Weights stored as f16 do not need it.
 */
shader_f16: boolean,
/**
 * Passes can be timed on the GPU.
 */
timestamps: boolean,
/**
 * Largest part of a buffer one kernel can see, in bytes.
 */
max_binding: number,
/**
 * Largest buffer, in bytes.
 */
max_buffer: number,
/**
 * Storage buffers one kernel can see.
 */
max_storage_buffers: number,
/**
 * Workgroup memory, in bytes.
 */
max_workgroup_memory: number,
/**
 * Invocations in one workgroup.
 */
max_workgroup_invocations: number, };
