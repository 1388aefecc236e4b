//! The models: what a transformer is (`spec`), where its tensors are (`names`), the one walk that joins the two (`walk`),
//! the layers at work (`block`, `transformer`); and the families, each a file that reads a config into both.

mod block;
mod blueprint;
mod classes;
mod config;
mod custom_code;
mod decoder;
mod description;
mod ends;
mod families;
mod llama_layout;
mod names;
mod plain_layout;
mod rope;
mod spec;
mod tied;
mod transformer;
mod walk;

use block::{Block, BlockCache};
pub(crate) use blueprint::{Blueprint, CONFIG_FILE};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use blueprint::{MAX_CONFIG_BYTES, read_config};
pub(crate) use classes::Classes;
use custom_code::refuse_custom_code;
use decoder::{Decoder, DecoderNames};
pub(crate) use description::Task;
use description::{Describe, Description};
use ends::Ends;
use llama_layout::LlamaLayout;
use names::{
    AttentionNames, BlockNames, HeadNames, InputNames, MlpNames, PatchNames, Prefix, RouterNames, StackNames,
    TokenNames, TransformNames, TransformerNames,
};
use plain_layout::PlainLayout;
use rope::Rope;
use spec::TransformSpec;
pub(crate) use spec::{BlockSpec, InputSpec, RouterPlace, StackSpec, TransformerSpec};
pub(crate) use transformer::Transformer;
use transformer::{Input, Layers, Stack};

/// The names that transformers has for each activation.
mod activations {
    pub(super) const SILU: [&str; 2] = ["silu", "swish"];
    pub(super) const GELU: [&str; 2] = ["gelu", "gelu_python"];
    pub(super) const GELU_TANH: [&str; 4] =
        ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"];
}
