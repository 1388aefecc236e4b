//! The tensors of the MoA repository's fairseq models: their names, which are copies of others, and the sizes they
//! give.

use std::collections::{HashMap, HashSet};

use crate::{
    Error, Result,
    weights::{
        Checkpoint, TensorInfo,
        limits::{MOST_EXPERTS, MOST_LAYERS, MOST_WIDE},
        quote,
    },
};

/// What stands before every name where the state dict is that of a task's wrapper.
const WRAPPER: &str = "model.";
/// The table that both stacks and the output head share.
const EMBEDDING: &str = "encoder.embed_tokens.weight";

/// A dimension that several tensors have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Axis {
    Vocab,
    Width,
    Experts,
    Head,
    Hidden,
}

impl Axis {
    /// The name of its size in a config, and the largest that headwise runs.
    fn name(self) -> (&'static str, usize) {
        match self {
            Axis::Vocab => ("vocab_size", MOST_WIDE),
            Axis::Width => ("d_model", MOST_WIDE),
            Axis::Experts => ("num_experts", MOST_EXPERTS),
            Axis::Head => ("head_dim", MOST_WIDE),
            Axis::Hidden => ("ffn_dim", MOST_WIDE),
        }
    }
}

/// The sizes of a model.
pub(super) struct Sizes {
    pub vocab: usize,
    pub width: usize,
    pub experts: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    /// Norms come before attention and MLP, and one more at the end of a stack.
    pub pre_norm: bool,
}

/// A checkpoint in fairseq's layout.
pub(super) struct Fairseq<'a> {
    pub sizes: Sizes,
    /// The embedding table.
    pub embedding: &'a TensorInfo,
    /// The tensors that make the model, each with its name in a model folder.
    pub kept: Vec<(String, &'a TensorInfo)>,
    /// Tensors that say once more what another says: the copy, then the other.
    pub copies: Vec<(&'a TensorInfo, &'a TensorInfo)>,
    /// Tensors of noisy gating, which is for training.
    pub noise: usize,
}

impl<'a> Fairseq<'a> {
    /// Recognises every tensor and derives all sizes from their shapes.
    ///
    /// # Errors
    /// When a tensor is missing, unknown or of a type that is not read, and when two shapes contradict each other.
    pub fn read(checkpoint: &'a Checkpoint) -> Result<Self> {
        let prefix = match checkpoint.tensors().any(|t| t.name.starts_with(WRAPPER)) {
            true => WRAPPER,
            false => "",
        };
        let full = |name: &str| format!("{prefix}{name}");
        // A translator has both: of an absent stack, the first tensor will be missed.
        let encoder_layers = layers(checkpoint, &full("encoder.layers."))?.max(1);
        let decoder_layers = layers(checkpoint, &full("decoder.layers."))?.max(1);
        let pre_norm = pre_norm(checkpoint, full)?;
        let expected = expected(encoder_layers, decoder_layers, pre_norm);
        let copies = copies(encoder_layers, decoder_layers);
        let noise: Vec<String> = expected.iter().filter_map(|(name, _)| noise_of(name)).collect();

        let names = expected.iter().map(|(name, _)| name).chain(copies.iter().map(|(copy, _)| copy));
        let names = names.chain(&noise).cloned().chain(empty());
        let known: HashSet<String> = names.map(|name| full(&name)).collect();
        let why = "a tensor of the MoA repository's encoder or decoder with dense MLPs, sinusoidal positions and \
                   projections without bias";
        checkpoint.refuse_unexpected(|name| known.contains(name), why)?;

        let mut shapes = Shapes { checkpoint, seen: HashMap::new() };
        let mut kept = Vec::with_capacity(expected.len());
        for (name, axes) in &expected {
            kept.push((name.clone(), shapes.add(&full(name), axes)?));
        }
        // The first that is expected, and has just been found.
        let embedding = kept[0].1;
        kept[0].0 = "embed_tokens.weight".to_owned();
        shapes.add(&full("decoder.embed_tokens.weight"), &[Axis::Vocab, Axis::Width])?;
        let tensor = |name: &str| checkpoint.tensor(&full(name));
        let size = |axis| shapes.seen.get(&axis).map_or(0, |(size, _)| *size);
        Ok(Fairseq {
            sizes: Sizes {
                vocab: size(Axis::Vocab),
                width: size(Axis::Width),
                experts: size(Axis::Experts),
                head_dim: size(Axis::Head),
                hidden: size(Axis::Hidden),
                encoder_layers,
                decoder_layers,
                pre_norm,
            },
            embedding,
            kept,
            copies: copies.iter().filter_map(|(copy, of)| Some((tensor(copy)?, tensor(of)?))).collect(),
            noise: noise.iter().filter(|name| tensor(name).is_some()).count(),
        })
    }
}

/// The sizes seen so far, each with the tensor that gave it.
struct Shapes<'a> {
    checkpoint: &'a Checkpoint,
    seen: HashMap<Axis, (usize, &'a str)>,
}

impl<'a> Shapes<'a> {
    /// Compares a tensor's shape with the sizes seen before, and learns new ones from it.
    fn add(&mut self, name: &str, axes: &[Axis]) -> Result<&'a TensorInfo> {
        let checkpoint = self.checkpoint;
        let words: Vec<_> = axes.iter().map(|axis| axis.name().0).collect();
        let why = format!("its shape is [{}]", words.join(", "));
        let tensor = checkpoint.require_like(name, &vec![None; axes.len()], &why)?;
        for (&axis, &size) in axes.iter().zip(&tensor.shape) {
            let (word, most) = axis.name();
            let bad = |expected: String| {
                let field = format!("tensor {name:?}, {word}");
                Err(Error::bad_file(checkpoint.path(tensor), field, size, expected))
            };
            match self.seen.get(&axis) {
                Some((first, from)) if *first != size => {
                    return bad(format!("{first}, as in tensor {from:?}"));
                }
                None if size > most => return bad(format!("at most {most}")),
                Some(_) => {}
                None => _ = self.seen.insert(axis, (size, &tensor.name)),
            }
        }
        Ok(tensor)
    }
}

/// How many layers there are of which the names start with `stack`: one more than the highest number.
fn layers(checkpoint: &Checkpoint, stack: &str) -> Result<usize> {
    let mut count = 0;
    for tensor in checkpoint.tensors() {
        let number = tensor.name.strip_prefix(stack).and_then(|rest| rest.split_once('.'));
        let Some(Ok(number)) = number.map(|(number, _)| number.parse::<usize>()) else { continue };
        if number >= MOST_LAYERS {
            let field = format!("tensor {}, layer", quote(&tensor.name));
            let expected = format!("at most {}", MOST_LAYERS - 1);
            return Err(Error::bad_file(checkpoint.path(tensor), field, number, expected));
        }
        count = count.max(number + 1);
    }
    Ok(count)
}

/// Whether the stacks end with a norm, as those do whose layers begin with one.
fn pre_norm(checkpoint: &Checkpoint, full: impl Fn(&str) -> String) -> Result<bool> {
    let names = ["encoder", "decoder"].map(|stack| full(&format!("{stack}.layer_norm.weight")));
    let [encoder_end, decoder_end] = names.each_ref().map(|name| checkpoint.tensor(name));
    match (encoder_end, decoder_end) {
        (Some(there), None) | (None, Some(there)) => {
            let absent = names.iter().find(|name| **name != there.name).map_or("", String::as_str);
            let expected =
                format!("one, as {:?} is there: both stacks end with a norm or none does", there.name);
            Err(Error::bad_file(checkpoint.path(there), format!("tensor {absent:?}"), "none", expected))
        }
        (end, _) => Ok(end.is_some()),
    }
}

/// The tensors that make the model, the embedding first, with the meaning of their dimensions.
fn expected(encoder: usize, decoder: usize, pre_norm: bool) -> Vec<(String, &'static [Axis])> {
    use Axis::{Experts, Head, Hidden, Vocab, Width};
    let mut all: Vec<(String, &'static [Axis])> = vec![(EMBEDDING.to_owned(), &[Vocab, Width])];
    for (stack, layers) in [("encoder", encoder), ("decoder", decoder)] {
        let attentions = if stack == "encoder" { &["self_attn"][..] } else { &["self_attn", "encoder_attn"] };
        for layer in 0..layers {
            let mut add = |name: &str, axes| all.push((format!("{stack}.layers.{layer}.{name}"), axes));
            for attention in attentions {
                add(&format!("{attention}.q_proj.w_gate"), &[Width, Experts]);
                add(&format!("{attention}.q_proj.experts.w"), &[Experts, Width, Head]);
                add(&format!("{attention}.q_proj.output_experts.w"), &[Experts, Head, Width]);
                add(&format!("{attention}.k_proj.weight"), &[Head, Width]);
                add(&format!("{attention}.v_proj.weight"), &[Head, Width]);
                add(&format!("{attention}_layer_norm.weight"), &[Width]);
                add(&format!("{attention}_layer_norm.bias"), &[Width]);
            }
            add("fc1.weight", &[Hidden, Width]);
            add("fc1.bias", &[Hidden]);
            add("fc2.weight", &[Width, Hidden]);
            add("fc2.bias", &[Width]);
            add("final_layer_norm.weight", &[Width]);
            add("final_layer_norm.bias", &[Width]);
        }
        if pre_norm {
            all.push((format!("{stack}.layer_norm.weight"), &[Width]));
            all.push((format!("{stack}.layer_norm.bias"), &[Width]));
        }
    }
    all
}

/// The names of tensors that are there twice or may be, each with the name of the one that is kept.
fn copies(encoder: usize, decoder: usize) -> Vec<(String, String)> {
    let copies = ["decoder.embed_tokens.weight", "decoder.output_projection.weight"];
    let mut all = copies.map(|copy| (copy.to_owned(), EMBEDDING.to_owned())).to_vec();
    // The dense MLP is also registered as a sequence: linear, activation, dropout (the encoder's only), linear.
    for (stack, layers, second) in [("encoder", encoder, 3), ("decoder", decoder, 2)] {
        for layer in 0..layers {
            for (index, linear) in [(0, "fc1"), (second, "fc2")] {
                for part in ["weight", "bias"] {
                    let name = |linear: &str| format!("{stack}.layers.{layer}.{linear}.{part}");
                    all.push((name(&format!("ffd.{index}")), name(linear)));
                }
            }
        }
    }
    all
}

/// The names of buffers that say nothing about the model: a format's number, a position table's type.
fn empty() -> impl Iterator<Item = String> {
    let names = ["version", "embed_positions._float_tensor"];
    ["encoder", "decoder"].into_iter().flat_map(move |stack| names.map(|name| format!("{stack}.{name}")))
}

/// The name of the noise beside a router.
fn noise_of(name: &str) -> Option<String> {
    name.strip_suffix("w_gate").map(|router| format!("{router}w_noise"))
}
