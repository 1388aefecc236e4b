//! English strings of user interfaces with masks: a mixture-of-attention-heads encoder (MoA) of 3 M parameters, for headwise.
#![no_std]

/// Files of the model's folder, as (name, bytes).
pub static FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("config.json")),
    ("tokenizer.json", include_bytes!("tokenizer.json")),
    ("model.safetensors", include_bytes!("model.safetensors")),
];
