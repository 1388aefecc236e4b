//! What a model is, from its files alone.

use serde::Serialize;

use crate::{
    Result,
    models::{Blueprint, CONFIG_FILE, Task},
    ops::{CachePrecision, Precision},
    weights::{Checkpoint, Dtype, Form, Request, Source, quote},
};

/// How weights that are not quantised can be loaded.
const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Q8, Precision::Q4];

/// A model's sizes and needs. Reading it takes the configuration and the tensors' headers, no GPU.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct ModelInfo {
    /// The model family, e.g. `jetmoe`.
    pub family: String,
    /// What it is for: `generate`, `translate`, `fill` or `classify`.
    pub task: &'static str,
    /// Outputs of the head: tokens of the vocabulary, or classes.
    pub vocab: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Blocks of attention and MLP.
    pub layers: u32,
    /// Blocks of the encoder that reads a translation's source; 0 where there is none.
    pub encoder_layers: u32,
    /// Positions the model was trained for.
    pub context: u32,
    /// The attention of the first block; families may vary it by layer.
    pub attention: AttentionInfo,
    /// The MLP of the first block; all 0 in a model of attention alone.
    pub mlp: MlpInfo,
    /// Weights in all.
    pub parameters: u64,
    /// Weights that one token uses.
    pub active_parameters: u64,
    /// Bytes on the GPU for each way to store the weights.
    pub memory: Vec<PrecisionMemory>,
    /// Bytes of key/value cache of f32 for each position of a sequence; for a translator, of a target and of its source.
    pub cache_bytes_per_token: u64,
    /// The precision that loading chooses by itself: that of the files, bf16 becoming f16.
    pub default_precision: Precision,
    /// Whether the files are quantised; then there is no other precision.
    pub quantized: bool,
    /// Matrices that stay f16 where the others are q8 or q4: embeddings, routers of two layers, and rows that are not
    /// whole groups of 32.
    pub kept_f16: Vec<String>,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
    /// What is unusual about the files and was decided in one way; each a sentence without its full stop.
    pub notes: Vec<String>,
    /// The token that ends a text, where the model has one.
    pub eos: Vec<u32>,
    /// The token that starts a text, where the model has one.
    pub bos: Option<u32>,
    /// The token that stands for an unknown one, where the model fills masks.
    pub mask: Option<u32>,
}

/// A routed attention in numbers.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct AttentionInfo {
    /// Experts a router chooses from.
    pub experts: u32,
    /// Experts it chooses for each token.
    pub active: u32,
    /// Experts that every token uses: the first ones, and the first of a token's choices.
    pub shared: u32,
    /// Heads an expert brings.
    pub heads_per_expert: u32,
    /// Key/value heads, shared by all experts.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
}

/// A routed MLP in numbers.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct MlpInfo {
    /// Experts a router chooses from.
    pub experts: u32,
    /// Experts it chooses for each token.
    pub active: u32,
    /// Hidden width of an expert.
    pub hidden: u32,
}

/// Weight memory at one precision.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct PrecisionMemory {
    /// How the matrices are stored; norms, biases and routers stay f32.
    pub precision: Precision,
    /// Bytes of all weights on the GPU.
    pub bytes: u64,
}

impl ModelInfo {
    /// Reads what `source` holds.
    ///
    /// # Errors
    /// Whatever is wrong with its configuration or its tensors' headers.
    pub async fn read(source: &Source) -> Result<Self> {
        let (blueprint, checkpoint) = Blueprint::read(source).await?;
        Ok(Self::new(&blueprint, &checkpoint))
    }

    pub(crate) fn new(blueprint: &Blueprint, checkpoint: &Checkpoint) -> Self {
        let Blueprint { family, task, spec, names, requests, ends } = blueprint;
        let quantization = checkpoint.quantization();
        // A spec has at least one block: the config reader refuses zero layers.
        let block = &spec.stack.blocks[0];
        let parameters = requests.iter().map(|request| request.form.parameters()).sum();
        let idle: u64 = requests.iter().map(Request::idle_parameters).sum();
        let all_f32 = requests
            .iter()
            .flat_map(|request| &request.pieces)
            .filter_map(|piece| checkpoint.tensor(&piece.name))
            .all(|tensor| Dtype::of(tensor.stored) == Some(Dtype::F32));
        Self {
            family: (*family).to_owned(),
            task: task.name(),
            vocab: spec.outputs,
            width: spec.width,
            layers: spec.stack.blocks.len() as u32,
            encoder_layers: spec.encoder.as_ref().map_or(0, |stack| stack.blocks.len() as u32),
            context: spec.context,
            attention: AttentionInfo {
                experts: block.attention.experts(),
                active: block.attention.active(),
                shared: block.attention.router.choice.shared,
                heads_per_expert: block.attention.heads_per_expert,
                kv_heads: block.attention.kv_heads,
                head_dim: block.attention.head_dim,
            },
            mlp: block.mlp.as_ref().map_or(MlpInfo { experts: 0, active: 0, hidden: 0 }, |mlp| MlpInfo {
                experts: mlp.experts(),
                active: mlp.active(),
                hidden: mlp.hidden,
            }),
            parameters,
            active_parameters: parameters - idle,
            memory: quantization
                .map_or(PRECISIONS.to_vec(), |only| vec![only])
                .into_iter()
                .map(|precision| {
                    let weights: u64 = requests.iter().map(|request| request.bytes(precision)).sum();
                    PrecisionMemory { precision, bytes: weights + spec.position_bytes() }
                })
                .collect(),
            cache_bytes_per_token: spec.cache_bytes_per_token(CachePrecision::F32),
            default_precision: match quantization {
                Some(precision) => precision,
                None if all_f32 => Precision::F32,
                None => Precision::F16,
            },
            quantized: quantization.is_some(),
            kept_f16: requests
                .iter()
                .filter(|request| matches!(request.form, Form::Matrix(..)))
                .filter(|request| !request.precision(Precision::Q4).is_quantized())
                .map(Request::key)
                .collect(),
            tied_head: names.head.shared,
            notes: names.head.note(CONFIG_FILE).into_iter().chain(unlisted(checkpoint)).collect(),
            eos: ends.eos.clone(),
            bos: ends.bos,
            mask: match task {
                Task::FillMask { mask, .. } => Some(*mask),
                _ => None,
            },
        }
    }

    /// Bytes of key/value cache for each position, in a cache that holds `precision`.
    pub fn cache_bytes(&self, precision: CachePrecision) -> u64 {
        self.cache_bytes_per_token / CachePrecision::F32.bytes() * precision.bytes()
    }

    /// The precision to load in, where `asked` is what the user wants.
    ///
    /// # Errors
    /// When the files are quantised in another way: their weights are gone.
    pub fn precision(&self, asked: Option<Precision>) -> Result<Precision> {
        match asked {
            Some(asked) if self.quantized && asked != self.default_precision => {
                let expected = format!("{}, as the files are quantised", self.default_precision.name());
                Err(crate::Error::argument("precision", asked.name(), expected))
            }
            asked => Ok(asked.unwrap_or(self.default_precision)),
        }
    }

    /// Bytes of all weights on the GPU at `precision`; 0 for one that the files do not allow.
    pub fn weight_bytes(&self, precision: Precision) -> u64 {
        self.memory.iter().find(|memory| memory.precision == precision).map_or(0, |memory| memory.bytes)
    }
}

/// What the files hold and their index does not list.
fn unlisted(checkpoint: &Checkpoint) -> Option<String> {
    let (first, more) = checkpoint.unlisted().split_first()?;
    let first = quote(first);
    Some(match more.len() {
        0 => format!("tensor {first} is left out: the index does not list it"),
        more => format!("tensor {first} and {more} more are left out: the index does not list them"),
    })
}
