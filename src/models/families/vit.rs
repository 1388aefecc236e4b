//! Vision transformers that name what an image shows: plain, or with MoH attention (arXiv 2410.11842, §4.1 of its code),
//! in which some heads are always on and the others are routed, weighed in two stages. Tensor names are timm's.

use serde_json::json;

use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, Heads, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    models::{
        AttentionNames, BlockNames, BlockSpec, Classes, Describe, Description, HeadNames, InputNames,
        InputSpec, MlpNames, PatchNames, Prefix, RouterNames, StackNames, StackSpec, Task, TransformerNames,
        TransformerSpec, activations::GELU, refuse_custom_code,
    },
    ops::{Activation, ExpertChoice, NormKind, Weighting},
    weights::{Fields, Order, Piece, Pieces},
};

/// A mixture of a layer's heads.
#[derive(Clone, Copy)]
struct Mixture {
    /// Heads that are always on, and those that each token keeps of the others.
    shared: u32,
    routed: u32,
    /// Whether both kinds are weighed against each other.
    two_stage: bool,
    /// Whether the shared heads have scores. The published models leave out the weights where there is but one.
    scored: bool,
}

/// Reads a ViT config; with an object `moh` (`shared_heads`, `routed_heads`, `two_stage`) it is a mixture of heads.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only_text(&["hidden_act"], &GELU, "the MLP's activation is the exact GELU")?;
    fields.only(&["qkv_bias"], &json!(true), "queries, keys and values have a bias")?;
    let (width, heads) = (fields.wide(&["hidden_size"])?, fields.heads(&["num_attention_heads"])?);
    let heads = Heads { query: heads, kv: heads, dim: fields.head_dim(width, heads)? };
    let norm = NormSpec::before(NormKind::Layer, width, fields.epsilon(&["layer_norm_eps"])?);
    let gelu = MlpActivation::Plain(Activation::Gelu);
    let mlp = ExpertMlpSpec::dense(norm, fields.wide(&["intermediate_size"])?, gelu);
    let layers = fields.layers(&["num_hidden_layers"])?;
    let classes = Classes::read(fields)?;
    let mixture = mixture(fields, heads.query)?;
    let unscored = mixture.filter(|mixture| mixture.routed == 0).map(|Mixture { shared, .. }| {
        let expected = "the weights of the shared heads, since no other is routed";
        fields.bad("moh.shared_heads", format!("{shared}, no wg_1"), expected)
    });
    Ok(Box::new(move |checkpoint| {
        let scored = checkpoint.tensor("blocks.0.attn.wg_1.weight").is_some();
        if let (Some(error), false) = (unscored, scored) {
            return Err(error);
        }
        let mixture = mixture.map(|mixture| Mixture { scored: scored && mixture.shared > 0, ..mixture });
        let dense = HeadMixtureSpec::dense(norm, heads, PositionEncoding::None);
        let attention = mixture.map_or(dense, |mixture| HeadMixtureSpec {
            router: mixture.router(heads.query),
            // A head is an expert.
            heads_per_expert: 1,
            ..dense
        });
        let blocks = vec![BlockSpec::new(attention, mlp); layers as usize];
        let count = classes.patches();
        let input = InputSpec::Patches { values: classes.patch_values(), count };
        let stack = StackSpec::new(blocks, false, norm);
        let stack_names = StackNames {
            blocks: (0..layers).map(|index| block_names(mixture, width, heads, index)).collect(),
            final_norm: Prefix::default().layer_norm("norm"),
        };
        let head = HeadNames { bias: "head.bias".to_owned().into(), ..HeadNames::new("head.weight", false) };
        Ok(Description {
            family: if mixture.is_some() { "moh-vit" } else { "vit" },
            spec: TransformerSpec::new(classes.labels.len() as u32, 1 + count, input, stack),
            names: TransformerNames::new(patch_names(&classes, width as usize), stack_names, head),
            task: Task::Classify(classes.into()),
        })
    }))
}

fn mixture(fields: &Fields<'_>, heads: u32) -> Result<Option<Mixture>> {
    if fields.get(&["moh"])?.is_none() {
        let advice = "If it is a plain ViT all the same, take auto_map out of the config";
        refuse_custom_code(fields, advice)?;
        return Ok(None);
    }
    let count = |name| {
        let count = fields.optional_count(&[name], heads as usize)?;
        count.map(|n| n as u32).ok_or_else(|| fields.missing(&[name]))
    };
    let (shared, routed) = (count("moh.shared_heads")?, count("moh.routed_heads")?);
    if shared + routed > heads || shared + routed == 0 {
        let expected = format!("with moh.shared_heads, {shared}, 1 to num_attention_heads, {heads}");
        return Err(fields.bad("moh.routed_heads", routed, expected));
    }
    let two_stage = fields.flag("moh.two_stage")?.unwrap_or(false) && shared > 0 && routed > 0;
    Ok(Some(Mixture { shared, routed, two_stage, scored: false }))
}

impl Mixture {
    fn router(self, heads: u32) -> RouterSpec {
        let Self { shared, routed, two_stage, scored } = self;
        let choice = ExpertChoice {
            shared,
            scale: routed as f32,
            shared_softmax: scored,
            two_stage,
            // The code takes the larger of the sum and the type's epsilon; the k largest never sum to so little.
            ..ExpertChoice::top_k(heads, routed, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
        };
        RouterSpec::new(RouterNet::Linear, choice)
    }

    /// The scores of shared heads, of the others, and of both kinds against each other.
    fn names(self, at: &Prefix, width: u32, heads: u32) -> RouterNames {
        let scores = [
            (self.scored, "wg_1", self.shared),
            (self.routed > 0, "wg", heads - self.shared),
            (self.two_stage, "wg_0", 2),
        ];
        let scores = scores.into_iter().filter(|(there, ..)| *there);
        let piece = |(_, part, rows): (bool, &str, u32)| {
            Piece::shaped(at.name(&format!("attn.{part}.weight")), &[rows as usize, width as usize])
        };
        RouterNames::linear(scores.map(piece).collect())
    }
}

fn patch_names(classes: &Classes, width: usize) -> InputNames {
    let (channels, side) = (classes.channels as usize, classes.patch_size as usize);
    let shaped = |name: &str, shape: &[usize]| Pieces::from(Piece::shaped(name.to_owned(), shape));
    InputNames::Patches(Box::new(PatchNames {
        projection: shaped("patch_embed.proj.weight", &[width, channels, side, side]),
        bias: "patch_embed.proj.bias".to_owned().into(),
        class_token: shaped("cls_token", &[1, 1, width]),
        positions: shaped("pos_embed", &[1, 1 + classes.patches() as usize, width]),
    }))
}

fn block_names(mixture: Option<Mixture>, width: u32, heads: Heads, index: u32) -> BlockNames {
    let at = Prefix::new(format!("blocks.{index}"));
    let rows = heads.query as usize * heads.dim as usize;
    // Queries, keys and values are one tensor.
    let weight = |first, count| {
        Piece::rows_of(at.name("attn.qkv.weight"), &[3 * rows, width as usize], first, count).into()
    };
    let bias = |first, count| Piece::rows_of(at.name("attn.qkv.bias"), &[3 * rows], first, count).into();
    BlockNames {
        attention: AttentionNames {
            norm: at.layer_norm("norm1"),
            router: mixture.map(|mixture| mixture.names(&at, width, heads.query)).unwrap_or_default(),
            query: weight(0, rows),
            query_bias: bias(0, rows),
            kv: weight(rows, 2 * rows),
            kv_bias: bias(rows, 2 * rows),
            output: at.weight("attn.proj").ordered(match mixture {
                Some(_) => Order::Columns,
                None => Order::Dense,
            }),
            output_bias: at.bias("attn.proj"),
            ..AttentionNames::default()
        },
        mlp: MlpNames {
            norm: at.layer_norm("norm2"),
            up: at.weight("mlp.fc1"),
            up_bias: at.bias("mlp.fc1"),
            down: at.weight("mlp.fc2"),
            down_bias: at.bias("mlp.fc2"),
            ..MlpNames::default()
        },
        ..BlockNames::default()
    }
}
