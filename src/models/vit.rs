//! Vision transformers that name what an image shows: plain, or with MoH attention (arXiv 2410.11842, §4.1 of its code),
//! in which some heads are always on and the others are routed, weighed in two stages. Tensor names are timm's.

use serde_json::json;

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, Classes, Describe, HeadNames, InputNames, InputSpec,
    MlpNames, PatchNames, RouterNames, StackNames, StackSpec, Task, TransformerNames, TransformerSpec,
    activations::GELU,
    custom_code::refuse_custom_code,
    layer_norm_names,
    limits::{MOST_HEADS, MOST_LAYERS, MOST_WIDE},
};
use crate::{
    Error, Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    ops::{Activation, AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order, Piece},
};

/// The longest side of an image, in pixels.
const MOST_PIXELS: usize = 1 << 14;

/// A ViT `config.json`.
struct Config {
    file: String,
    width: u32,
    layers: u32,
    heads: u32,
    head_dim: u32,
    hidden: u32,
    eps: f32,
    classes: Classes,
    /// Heads that are always on, heads that each token keeps of the others, and whether they are weighed in two stages.
    mixture: Option<(u32, u32, bool)>,
}

/// Reads a ViT config; with an object `moh` (`shared_heads`, `routed_heads`, `two_stage`) it is a mixture of heads.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only_text(&["hidden_act"], &GELU, "the MLP's activation is the exact GELU")?;
    fields.only(&["qkv_bias"], &json!(true), "queries, keys and values have a bias")?;
    let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
    let (width, heads) = (size("hidden_size", MOST_WIDE)?, size("num_attention_heads", MOST_HEADS)?);
    let head_dim = match fields.optional_size(&["head_dim"], MOST_WIDE)? {
        Some(head_dim) => head_dim as u32,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads, {heads}");
            return Err(fields.bad("hidden_size", width, expected));
        }
    };
    let (image_size, patch_size) = (size("image_size", MOST_PIXELS)?, size("patch_size", MOST_PIXELS)?);
    if !image_size.is_multiple_of(patch_size) {
        return Err(fields.bad("image_size", image_size, format!("a multiple of patch_size, {patch_size}")));
    }
    let channels = size("num_channels", 4)?;
    if channels != 1 && channels != 3 {
        return Err(fields.bad("num_channels", channels, "1 (grey) or 3 (red, green, blue)"));
    }
    let labels = fields.labels("id2label")?;
    let numbers = |name, range| fields.numbers(name, channels as usize, range);
    let config = Config {
        file: fields.file().to_owned(),
        width,
        layers: size("num_hidden_layers", MOST_LAYERS)?,
        heads,
        head_dim,
        hidden: size("intermediate_size", MOST_WIDE)?,
        eps: fields.number(&["layer_norm_eps"], 1e-12..=0.1)?,
        classes: Classes {
            labels,
            image_size,
            patch_size,
            channels,
            mean: numbers("image_mean", -1e3..=1e3)?,
            std: numbers("image_std", 1e-6..=1e3)?,
        },
        mixture: mixture(fields, heads)?,
    };
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn mixture(fields: &Fields<'_>, heads: u32) -> Result<Option<(u32, u32, bool)>> {
    if fields.get(&["moh"])?.is_none() {
        let advice = "If it is a plain ViT all the same, take auto_map out of the config";
        refuse_custom_code(fields, advice)?;
        return Ok(None);
    }
    let count = |name| {
        let count = fields.optional_count(name, heads as usize)?;
        count.map(|n| n as u32).ok_or_else(|| fields.missing(&[name]))
    };
    let (shared, routed) = (count("moh.shared_heads")?, count("moh.routed_heads")?);
    if shared + routed > heads || shared + routed == 0 {
        let expected = format!("with moh.shared_heads, {shared}, 1 to num_attention_heads, {heads}");
        return Err(fields.bad("moh.routed_heads", routed, expected));
    }
    let two_stage = fields.flag("moh.two_stage")?.unwrap_or(false);
    Ok(Some((shared, routed, two_stage && shared > 0 && routed > 0)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let classes = &config.classes;
    let values = classes.channels * classes.patch_size * classes.patch_size;
    let count = classes.patches();
    // The published models leave out the weights of shared heads where there is but one.
    let scored = checkpoint.tensor("blocks.0.attn.wg_1.weight").is_some();
    if let (Some((shared, 0, _)), false) = (config.mixture, scored) {
        let expected = "the weights of the shared heads, since no other is routed";
        return Err(Error::bad_file(
            &config.file,
            "moh.shared_heads",
            format!("{shared}, no wg_1"),
            expected,
        ));
    }
    let norm = NormSpec::before(NormKind::Layer, config.width, config.eps);
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm,
            router: router(config, scored),
            query_share: 1,
            heads_per_expert: if config.mixture.is_some() { 1 } else { config.heads },
            kv_heads: config.heads,
            group: 1,
            head_dim: config.head_dim,
            kv: KvProjection::Projected,
            position: PositionEncoding::None,
            kernel: AttentionKernel::Softmax,
        },
        cross: None,
        mlp: ExpertMlpSpec {
            norm,
            router: RouterSpec::none(),
            hidden: config.hidden,
            activation: MlpActivation::Plain(Activation::Gelu),
        },
    };
    let spec = TransformerSpec {
        outputs: classes.labels.len() as u32,
        width: config.width,
        context: 1 + count,
        input: InputSpec::Patches { values, count },
        encoder: None,
        stack: StackSpec { blocks: vec![block; config.layers as usize], causal: false, final_norm: norm },
    };
    let (width, side) = (config.width as usize, classes.patch_size as usize);
    let patch = [width, classes.channels as usize, side, side];
    let names = TransformerNames {
        input: InputNames::Patches(Box::new(PatchNames {
            projection: Piece::shaped("patch_embed.proj.weight".to_owned(), &patch),
            bias: "patch_embed.proj.bias".to_owned(),
            class_token: Piece::shaped("cls_token".to_owned(), &[1, 1, width]),
            positions: Piece::shaped("pos_embed".to_owned(), &[1, 1 + count as usize, width]),
        })),
        encoder: None,
        stack: StackNames {
            blocks: (0..config.layers).map(|index| block_names(config, index, scored)).collect(),
            final_norm: layer_norm_names("norm"),
        },
        head: HeadNames { bias: Some("head.bias".to_owned()), ..HeadNames::new("head.weight", false) },
    };
    let family = if config.mixture.is_some() { "moh-vit" } else { "vit" };
    let is = (family, Task::Classify(classes.clone()));
    Blueprint::checked(is, spec, names, checkpoint, &config.file)
}

fn router(config: &Config, scored: bool) -> RouterSpec {
    let Some((shared, routed, two_stage)) = config.mixture else { return RouterSpec::none() };
    let choice = ExpertChoice {
        shared,
        scale: routed as f32,
        shared_softmax: scored && shared > 0,
        two_stage,
        // The code takes the larger of the sum and the type's epsilon; the k largest never sum to so little.
        ..ExpertChoice::top_k(config.heads, routed, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
    };
    RouterSpec::new(RouterNet::Linear, choice)
}

fn block_names(config: &Config, index: u32, scored: bool) -> BlockNames {
    let name = |name: &str| format!("blocks.{index}.{name}");
    let (width, rows) = (config.width as usize, config.heads as usize * config.head_dim as usize);
    let qkv = |first: usize, count: usize| {
        let weight = Piece::rows_of(name("attn.qkv.weight"), &[3 * rows, width], first, count);
        (vec![weight], vec![Piece::rows_of(name("attn.qkv.bias"), &[3 * rows], first, count)])
    };
    let (query, query_bias) = qkv(0, rows);
    let (kv, kv_bias) = qkv(rows, 2 * rows);
    let router = config.mixture.map_or(RouterNames::None, |(shared, routed, two_stage)| {
        let heads = config.heads as usize;
        let piece =
            |part: &str, rows: usize| Piece::shaped(name(&format!("attn.{part}.weight")), &[rows, width]);
        let weight = [
            (scored && shared > 0).then(|| piece("wg_1", shared as usize)),
            (routed > 0).then(|| piece("wg", heads - shared as usize)),
            two_stage.then(|| piece("wg_0", 2)),
        ];
        RouterNames::Linear { weight: weight.into_iter().flatten().collect(), transposed: false, bias: None }
    });
    BlockNames {
        attention: AttentionNames {
            norm: layer_norm_names(&name("norm1")),
            router,
            query,
            query_bias,
            kv,
            kv_bias,
            output: name("attn.proj.weight"),
            output_bias: Some(name("attn.proj.bias")),
            output_order: if config.mixture.is_some() { Order::Columns } else { Order::Dense },
            ..AttentionNames::default()
        },
        cross: None,
        mlp: MlpNames {
            norm: layer_norm_names(&name("norm2")),
            up: vec![name("mlp.fc1.weight").into()],
            up_bias: Some(name("mlp.fc1.bias")),
            down: name("mlp.fc2.weight"),
            down_bias: Some(name("mlp.fc2.bias")),
            ..MlpNames::default()
        },
    }
}
