//! Small models to spoil, and the check that one is refused.

use headwise::fuzzing::{check_checkpoint, check_source};
use headwise::{Error, Source};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A whole model, as small as they come, to be spoiled in one way at a time.
#[derive(Clone)]
pub struct Model {
    /// `config.json`.
    pub config: Value,
    /// Name, dtype, shape and bytes.
    pub tensors: Vec<(String, String, Vec<u64>, Vec<u8>)>,
}

impl Model {
    pub fn small() -> Self {
        let config = json!({
            "model_type": "jetmoe", "vocab_size": 3, "hidden_size": 4, "num_hidden_layers": 1,
            "num_key_value_heads": 1, "kv_channels": 4, "moe_top_k": 1, "moe_num_experts": 2,
            "ffn_hidden_size": 2, "n_positions": 8, "rms_norm_eps": 1e-5
        });
        let shapes: [(&str, &[u64]); 13] = [
            ("model.embed_tokens.weight", &[3, 4]),
            ("model.norm.weight", &[4]),
            ("model.layers.0.input_layernorm.weight", &[4]),
            ("model.layers.0.self_attention.kv_proj.weight", &[8, 4]),
            ("model.layers.0.self_attention.experts.router.layer.weight", &[2, 4]),
            ("model.layers.0.self_attention.experts.input_linear.weight", &[2, 4, 4]),
            ("model.layers.0.self_attention.experts.output_linear.weight", &[2, 4, 4]),
            ("model.layers.0.self_attention.experts.bias", &[4]),
            ("model.layers.0.post_attention_layernorm.weight", &[4]),
            ("model.layers.0.mlp.router.layer.weight", &[2, 4]),
            ("model.layers.0.mlp.input_linear.weight", &[2, 4, 4]),
            ("model.layers.0.mlp.output_linear.weight", &[2, 4, 2]),
            ("model.layers.0.mlp.bias", &[4]),
        ];
        let tensors = shapes.map(|(name, shape)| {
            let bytes = vec![0; 2 * shape.iter().product::<u64>() as usize];
            (name.to_owned(), "F16".to_owned(), shape.to_vec(), bytes)
        });
        Model { config, tensors: tensors.into() }
    }

    pub fn tensor(&mut self, end: &str) -> &mut (String, String, Vec<u64>, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0.ends_with(end)).expect(end)
    }

    pub fn config(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    pub fn header(&self) -> Value {
        let mut at = 0;
        let entries = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            let range = [at, at + bytes.len()];
            at = range[1];
            (name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": range}))
        });
        Value::Object(entries.collect())
    }

    pub fn data(&self) -> Vec<u8> {
        self.tensors.iter().flat_map(|t| t.3.clone()).collect()
    }

    pub fn weights(&self) -> Vec<u8> {
        file(&self.header().to_string(), &self.data())
    }

    pub fn check(&self) -> Result<(), Error> {
        check_checkpoint(&self.weights(), &self.config())
    }
}

pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// An error of moderate length that says all of `parts`.
#[track_caller]
pub fn refused(result: Result<(), Error>, parts: &[&str]) {
    let error = result.expect_err(&format!("{parts:?}")).to_string();
    assert!(error.len() < 1500, "{} bytes of message", error.len());
    for part in parts {
        assert!(error.contains(part), "{error:?} should say {part:?}");
    }
}

/// A folder of its own for a test, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("headwise-hostile-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn with(self, file: &str, bytes: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.0.join(file), bytes).unwrap();
        self
    }

    pub fn check(&self) -> Result<(), Error> {
        check_source(&Source::folder(&self.0))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const WEIGHTS: &str = "/model.safetensors: ";
pub const CONFIG: &str = "/config.json: ";
pub const INDEX: &str = "/model.safetensors.index.json: ";
