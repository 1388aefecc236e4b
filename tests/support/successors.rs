//! A Llama that writes the same token after a token, every time: what it writes is known without running it.

use std::{fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

/// Writes such a model with a context of 128 tokens, whose tokenizer has `vocab` of them: `next` has pairs of a token and
/// the one after it. Token 2 ends a text.
///
/// Embeddings are rows of the identity and attention adds nothing, so the head's entry `[next, token]` decides alone.
pub fn write(folder: &Path, tokenizer: &str, vocab: usize, next: &[(usize, usize)]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let width = vocab.next_multiple_of(16);
    let config = json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let matrix = |entries: &mut dyn Iterator<Item = (usize, usize)>| {
        let mut values = vec![0.0f32; vocab * width];
        entries.for_each(|(row, column)| values[row * width + column] = 1.0);
        values
    };
    let layer = "model.layers.0";
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = [
        (
            "model.embed_tokens".to_owned(),
            vec![vocab, width],
            matrix(&mut (0..vocab).map(|token| (token, token))),
        ),
        (
            "lm_head".to_owned(),
            vec![vocab, width],
            matrix(&mut next.iter().map(|&(token, next)| (next, token))),
        ),
        ("model.norm".to_owned(), vec![width], vec![1.0; width]),
        (format!("{layer}.input_layernorm"), vec![width], vec![1.0; width]),
        (format!("{layer}.post_attention_layernorm"), vec![width], vec![1.0; width]),
    ]
    .into_iter()
    .chain(
        [
            ("self_attn.q_proj", [8, width]),
            ("self_attn.k_proj", [8, width]),
            ("self_attn.v_proj", [8, width]),
            ("self_attn.o_proj", [width, 8]),
            ("mlp.gate_proj", [16, width]),
            ("mlp.up_proj", [16, width]),
            ("mlp.down_proj", [width, 16]),
        ]
        .map(|(name, shape)| (format!("{layer}.{name}"), shape.to_vec(), vec![0.0; shape[0] * shape[1]])),
    )
    .collect();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (format!("{name}.weight"), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}
