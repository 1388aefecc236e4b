//! ALBERT (arXiv 1909.11942): an encoder that fills masks, of one block that runs many times, and a table narrower than the
//! block. Tensor names are transformers'.

use serde_json::json;

use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, Heads, MlpActivation, NormPlacement, NormSpec, PositionEncoding,
    },
    models::{
        AttentionNames, BlockNames, BlockSpec, Describe, Description, HeadNames, InputNames, InputSpec,
        MlpNames, Prefix, StackNames, StackSpec, Task, TokenNames, TransformNames, TransformSpec,
        TransformerNames, TransformerSpec,
        activations::{GELU, GELU_TANH},
    },
    ops::{Activation, NormKind},
    weights::{Fields, Piece, Pieces},
};

/// Reads the config of an `AlbertForMaskedLM`, which must say what stands for a mask and ends a text besides.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let one = "all of the model's layers are one";
    fields.only(&["num_hidden_groups"], &json!(1), one)?;
    fields.only(&["inner_group_num"], &json!(1), one)?;
    fields.only_text(
        &["position_embedding_type"],
        &["absolute"],
        "ALBERT's positions are learned vectors",
    )?;
    let activation = activation(fields)?;
    let width = fields.wide(&["hidden_size"])?;
    let table = fields.wide(&["embedding_size"])?;
    if table > width {
        return Err(fields.bad("embedding_size", table, format!("at most hidden_size, which is {width}")));
    }
    let (vocab, context) = (fields.wide(&["vocab_size"])?, fields.wide(&["max_position_embeddings"])?);
    let eps = fields.epsilon(&["layer_norm_eps"])?;
    let norm = |width| NormSpec::before(NormKind::Layer, width, eps);
    let after = NormSpec { placement: NormPlacement::After, ..norm(width) };
    let heads = fields.heads(&["num_attention_heads"])?;
    let heads = Heads { query: heads, kv: heads, dim: fields.head_dim(width, heads)? };
    let block = BlockSpec::new(
        HeadMixtureSpec::dense(after, heads, PositionEncoding::None),
        ExpertMlpSpec::dense(after, fields.wide(&["intermediate_size"])?, MlpActivation::Plain(activation)),
    );
    let layers = fields.layers(&["num_hidden_layers"])?;
    let (stack, stack_names) = stack(block, layers, norm(width));
    let types = fields.wide(&["type_vocab_size"])?;
    let input = InputSpec::Tokens { scale: 1.0, sinusoidal_from: None, factor: Some(norm(table)) };
    Ok(Description {
        family: "albert",
        task: task(fields, vocab)?,
        spec: TransformerSpec {
            transform: Some(TransformSpec { activation, norm: norm(table) }),
            ..TransformerSpec::new(vocab, context, input, stack)
        },
        names: TransformerNames::new(input_names(types, table), stack_names, head_names()),
    }
    .whole())
}

fn activation(fields: &Fields<'_>) -> Result<Activation> {
    let named = fields.text("hidden_act")?;
    if GELU_TANH.contains(&named) {
        return Ok(Activation::GeluTanh);
    }
    fields.only_text(&["hidden_act"], &GELU, "ALBERT's MLP has a GELU, exact or by its tanh form")?;
    Ok(Activation::Gelu)
}

/// The tokens that a text has besides its own: these must be in the vocabulary.
fn task(fields: &Fields<'_>, vocab: u32) -> Result<Task> {
    let token = |name| fields.known_token(name, fields.tokens(name)?.first(), vocab);
    Ok(Task::FillMask { mask: token("mask_token_id")?, end: token("eos_token_id")? })
}

/// The block, so many times. The norm after the last is the stack's own.
fn stack(block: BlockSpec, layers: u32, norm: NormSpec) -> (StackSpec, StackNames) {
    let mut blocks = vec![block; layers as usize];
    let mut names = vec![block_names(); layers as usize];
    let mut final_norm = Pieces::default();
    if let (Some(mlp), Some(names)) = (blocks.last_mut().and_then(|last| last.mlp.as_mut()), names.last_mut())
    {
        mlp.norm.placement = NormPlacement::None;
        final_norm = std::mem::take(&mut names.mlp.norm);
    }
    (StackSpec::new(blocks, false, norm), StackNames { blocks: names, final_norm })
}

fn block_names() -> BlockNames {
    let at = Prefix::new("albert.encoder.albert_layer_groups.0.albert_layers.0");
    let kv = ["attention.key", "attention.value"];
    BlockNames {
        attention: AttentionNames {
            norm: at.layer_norm("attention.LayerNorm"),
            query: at.weight("attention.query"),
            query_bias: at.bias("attention.query"),
            kv: at.weights(kv),
            kv_bias: at.biases(kv),
            output: at.weight("attention.dense"),
            output_bias: at.bias("attention.dense"),
            ..AttentionNames::default()
        },
        mlp: MlpNames {
            norm: at.layer_norm("full_layer_layer_norm"),
            up: at.weight("ffn"),
            up_bias: at.bias("ffn"),
            down: at.weight("ffn_output"),
            down_bias: at.bias("ffn_output"),
            ..MlpNames::default()
        },
        ..BlockNames::default()
    }
}

fn input_names(types: u32, table: u32) -> InputNames {
    let (at, encoder) = (Prefix::new("albert.embeddings"), Prefix::new("albert.encoder"));
    // One text is of type 0.
    let kinds = [types as usize, table as usize];
    let kind = Piece::rows_of(at.name("token_type_embeddings.weight"), &kinds, 0, 1);
    InputNames::Tokens(Box::new(TokenNames {
        table: at.name("word_embeddings.weight"),
        positions: at.weight("position_embeddings"),
        everywhere: kind.into(),
        norm: at.layer_norm("LayerNorm"),
        projection: encoder.weight("embedding_hidden_mapping_in"),
        bias: encoder.bias("embedding_hidden_mapping_in"),
    }))
}

fn head_names() -> HeadNames {
    let at = Prefix::new("predictions");
    HeadNames {
        bias: at.tensor("bias"),
        transform: TransformNames {
            matrix: at.weight("dense"),
            bias: at.bias("dense"),
            norm: at.layer_norm("LayerNorm"),
        },
        ..HeadNames::new("predictions.decoder.weight", true)
    }
}
