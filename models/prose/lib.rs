//! English prose of four kinds, a mixture-of-attention-heads language model (JetMoE) of 10 M parameters, for headwise.
#![no_std]

/// Files of the model's folder, as (name, bytes).
pub static FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("config.json")),
    ("generation_config.json", include_bytes!("generation_config.json")),
    ("tokenizer.json", include_bytes!("tokenizer.json")),
    ("model.safetensors.index.json", include_bytes!("model.safetensors.index.json")),
    ("model-00001-of-00002.safetensors", include_bytes!("model-00001-of-00002.safetensors")),
];

/// A prompt, and what transformers 5.23 writes behind it greedily, in [`GREEDY_TOKENS`] tokens: the first of `reference.json`, which
/// is not packed.
pub static GREEDY: (&str, &str) = (
    "The king shall",
    " be his king. And the king of Babylon shall be a son of the king, and his son, and his son, and his son, and his son, and his son, and his son, and his son, and his son",
);

/// Tokens of [`GREEDY`].
pub const GREEDY_TOKENS: usize = 48;
