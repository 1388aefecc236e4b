//! The second half of the weights of headwise-model-ui-en-de, for headwise.
#![no_std]

/// Files of the model's folder, as (name, bytes).
pub static FILES: &[(&str, &[u8])] =
    &[("part-2/model-00002-of-00002.safetensors", include_bytes!("model-00002-of-00002.safetensors"))];
