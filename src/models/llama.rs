//! Llama-layout decoders: dense, and MoH-LLaMA (arXiv 2410.11842, §4.4 of its code), in which some heads are always on
//! and of the others each token keeps those with the longest queries.

use serde_json::json;

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, DecoderSpec, Describe, HeadNames, MlpNames, Task,
    TransformerNames,
    activations::SILU,
    custom_code::refuse_custom_code,
    limits::{MOST_HEADS, MOST_LAYERS, MOST_WIDE},
    rms_norm_names,
    rope::Rope,
};
use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    ops::{AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order},
};

/// What a `config.json` in Llama's layout says of a model's sizes.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// The config's path.
    pub file: String,
    pub vocab: u32,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub hidden: u32,
    pub context: u32,
    /// Of every norm; its width is the model's.
    pub norm: NormSpec,
    pub theta: f64,
    pub tied: bool,
}

impl Sizes {
    /// # Errors
    /// When the config is incomplete, contradicts itself or wants something headwise does not run.
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        fields.only_text(&["hidden_act"], &SILU, "Llama's MLP is SiLU-gated")?;
        fields.only(&["attention_bias"], &json!(false), "Llama's projections have no bias")?;
        fields.only(&["mlp_bias"], &json!(false), "Llama's projections have no bias")?;
        let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
        let optional = |name, most| fields.optional_size(&[name], most).map(|n| n.map(|n| n as u32));
        let (width, heads) = (size("hidden_size", MOST_WIDE)?, size("num_attention_heads", MOST_HEADS)?);
        let kv_heads = optional("num_key_value_heads", MOST_HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {heads}");
            return Err(fields.bad("num_key_value_heads", kv_heads, expected));
        }
        let head_dim = match optional("head_dim", MOST_WIDE)? {
            Some(head_dim) => head_dim,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads, {heads}");
                return Err(fields.bad("hidden_size", width, expected));
            }
        };
        let eps = fields.number(&["rms_norm_eps"], 1e-12..=0.1)?;
        Ok(Self {
            file: fields.file().to_owned(),
            vocab: size("vocab_size", MOST_WIDE)?,
            layers: size("num_hidden_layers", MOST_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            hidden: size("intermediate_size", MOST_WIDE)?,
            context: size("max_position_embeddings", MOST_WIDE)?,
            norm: NormSpec::before(NormKind::Rms, width, eps),
            theta: f64::from(Rope::whole(fields)?.unwrap_or(1e4)),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// Ordinary attention of these sizes, grouped and rotated.
    pub fn attention(&self) -> HeadMixtureSpec {
        HeadMixtureSpec {
            norm: self.norm,
            router: RouterSpec::none(),
            query_share: 1,
            heads_per_expert: self.heads,
            kv_heads: self.kv_heads,
            group: self.heads / self.kv_heads,
            head_dim: self.head_dim,
            kv: KvProjection::Projected,
            position: PositionEncoding::Rope { theta: self.theta, channels: self.head_dim },
            kernel: AttentionKernel::Softmax,
        }
    }

    /// A dense MLP of these sizes.
    pub fn mlp(&self) -> ExpertMlpSpec {
        let Self { norm, hidden, .. } = *self;
        ExpertMlpSpec { norm, router: RouterSpec::none(), hidden, activation: MlpActivation::SwiGlu }
    }

    /// The whole of such blocks, with Llama's names outside of them.
    pub fn decoder(&self, block: BlockSpec, names: Vec<BlockNames>) -> (DecoderSpec, TransformerNames) {
        let spec = DecoderSpec {
            vocab: self.vocab,
            context: self.context,
            layers: self.layers,
            block,
            final_norm: self.norm,
        };
        let head = HeadNames::new("lm_head.weight", self.tied);
        let final_norm = rms_norm_names("model.norm");
        (spec, TransformerNames::decoder("model.embed_tokens.weight", names, final_norm, head))
    }
}

/// Reads a Llama config; with an object `moh` (`shared`, `routed`, `router`) it is a mixture of heads.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let sizes = Sizes::read(fields)?;
    let mixture = mixture(fields, sizes.heads)?;
    Ok(Box::new(move |checkpoint| blueprint(&sizes, mixture, checkpoint)))
}

/// The heads that are always on, and those that each token keeps of the others.
fn mixture(fields: &Fields<'_>, heads: u32) -> Result<Option<(u32, u32)>> {
    if fields.get(&["moh"])?.is_none() {
        // The published mixture has a Llama's tensors and nothing besides: run as one, it would be another function.
        let advice = format!(
            "If it is MoH-LLaMA3, add \"moh\": {{\"shared\": {}, \"routed\": {}, \"router\": \"query_norm\"}} to the config; \
             if it is a plain Llama all the same, take auto_map out",
            (heads / 2).max(1),
            (heads / 4).max(1)
        );
        refuse_custom_code(fields, &advice)?;
        return Ok(None);
    }
    fields.only(&["moh.router"], &json!("query_norm"), "MoH-LLaMA routes by query length")?;
    let shared = fields.size(&["moh.shared"], MOST_HEADS)? as u32;
    let routed = fields.size(&["moh.routed"], MOST_HEADS)? as u32;
    if shared + routed > heads {
        let expected = format!("with moh.shared, {shared}, at most num_attention_heads, {heads}");
        return Err(fields.bad("moh.routed", routed, expected));
    }
    Ok(Some((shared, routed)))
}

fn blueprint(sizes: &Sizes, mixture: Option<(u32, u32)>, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let dense = sizes.attention();
    let attention = mixture.map_or(dense, |(shared, top_k)| {
        let choice = ExpertChoice { shared, ..ExpertChoice::top_k(sizes.heads, top_k, Weighting::Constant) };
        // A head is an expert.
        HeadMixtureSpec {
            router: RouterSpec::new(RouterNet::QueryNorm, choice),
            heads_per_expert: 1,
            ..dense
        }
    });
    let block = BlockSpec { attention, cross: None, mlp: sizes.mlp() };
    let names = (0..sizes.layers).map(|index| block_names(index, mixture.is_some())).collect();
    let (spec, names) = sizes.decoder(block, names);
    let is = (if mixture.is_some() { "moh-llama" } else { "llama" }, Task::Generate);
    Blueprint::checked(is, spec.into(), names, checkpoint, &sizes.file)
}

fn block_names(index: u32, mixture: bool) -> BlockNames {
    let layer = |name: &str| format!("model.layers.{index}.{name}");
    let name = |name: &str| format!("{}.weight", layer(name));
    BlockNames {
        attention: AttentionNames {
            norm: rms_norm_names(&layer("input_layernorm")),
            query: vec![name("self_attn.q_proj").into()],
            kv: ["self_attn.k_proj", "self_attn.v_proj"].map(|proj| name(proj).into()).to_vec(),
            output: name("self_attn.o_proj"),
            output_order: if mixture { Order::Columns } else { Order::Dense },
            ..AttentionNames::default()
        },
        cross: None,
        mlp: MlpNames {
            norm: rms_norm_names(&layer("post_attention_layernorm")),
            up: ["mlp.gate_proj", "mlp.up_proj"].map(|proj| name(proj).into()).to_vec(),
            down: name("mlp.down_proj"),
            ..MlpNames::default()
        },
    }
}
