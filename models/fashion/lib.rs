//! Small grey pictures of clothing: a vision transformer with routed heads (MoH) of 0.4 M parameters, for headwise.
#![no_std]

/// Files of the model's folder, as (name, bytes).
pub static FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("config.json")),
    ("model.safetensors", include_bytes!("model.safetensors")),
];
