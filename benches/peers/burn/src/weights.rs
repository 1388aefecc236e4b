//! `config.json` and `model.safetensors` of a JetMoE folder, as burn tensors.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::{fs, path::Path};

use super::Outcome;

/// The sizes that the tensors' shapes do not tell. Aliases are the names of jetmoe-8b's own config.
#[derive(Deserialize)]
pub struct Config {
    pub num_hidden_layers: usize,
    #[serde(alias = "moe_top_k")]
    pub num_experts_per_tok: usize,
    pub kv_channels: usize,
    pub num_key_value_heads: usize,
    #[serde(alias = "n_positions")]
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
}

impl Config {
    pub fn read(folder: &Path) -> Outcome<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join("config.json"))?)?)
    }
}

/// The tensors of one file.
pub struct Weights<'a> {
    pub file: SafeTensors<'a>,
    pub device: &'a Device,
    pub dtype: DType,
}

impl Weights<'_> {
    /// A tensor in the model's own dtype.
    pub fn get<const D: usize>(&self, name: &str) -> Outcome<Tensor<D>> {
        self.typed(name, self.dtype)
    }

    /// A tensor in f32, whatever the model's dtype: norms and routers.
    pub fn get_f32<const D: usize>(&self, name: &str) -> Outcome<Tensor<D>> {
        self.typed(name, DType::F32)
    }

    fn typed<const D: usize>(&self, name: &str, dtype: DType) -> Outcome<Tensor<D>> {
        let view = self.file.tensor(name)?;
        let shape: [usize; D] =
            view.shape().try_into().map_err(|_| format!("{name} has the shape {:?}", view.shape()))?;
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(format!("{name} is {other}").into()),
        };
        Ok(Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (self.device, dtype)))
    }
}
