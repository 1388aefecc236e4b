//! Reading a folder: each tensor is taken by name, and none may be left over.

use super::{
    activations::Activation,
    blocks::{Mlp, Norm},
    jetmoe::{read_json, read_tensors},
};
use serde_json::Value;
use std::{collections::HashMap, path::Path};

/// A folder's config, and the tensors nobody has taken yet.
pub struct Folder {
    /// `config.json`.
    pub config: Value,
    tensors: HashMap<String, Vec<f64>>,
}

impl Folder {
    /// Reads `config.json` and the tensors.
    pub fn open(folder: &Path) -> Folder {
        Folder { config: read_json(&folder.join("config.json")), tensors: read_tensors(folder) }
    }

    /// A tensor, in row-major order.
    pub fn take(&mut self, name: &str) -> Vec<f64> {
        self.take_if_there(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// The same for a tensor that may be absent.
    pub fn take_if_there(&mut self, name: &str) -> Option<Vec<f64>> {
        self.tensors.remove(name)
    }

    /// `name.weight` and `name.bias`.
    pub fn layer_norm(&mut self, name: &str, epsilon: f64) -> Norm {
        let (weight, bias) = (self.take(&format!("{name}.weight")), self.take(&format!("{name}.bias")));
        Norm::Layer { weight, bias, epsilon }
    }

    /// `name.weight`.
    pub fn rms_norm(&mut self, name: &str, epsilon: f64) -> Norm {
        Norm::Rms { weight: self.take(&format!("{name}.weight")), epsilon }
    }

    /// `prefix.fc1` and `prefix.fc2`, with the activation that the config's field `activation` names.
    pub fn mlp(&mut self, prefix: &str, activation: &str) -> Mlp {
        Mlp {
            activation: match self.config[activation].as_str() {
                Some("relu") => Activation::Relu,
                Some("gelu") => Activation::Gelu,
                other => panic!("{activation} is {other:?}"),
            },
            input: self.take(&format!("{prefix}.fc1.weight")),
            input_bias: self.take(&format!("{prefix}.fc1.bias")),
            output: self.take(&format!("{prefix}.fc2.weight")),
            output_bias: self.take(&format!("{prefix}.fc2.bias")),
        }
    }

    /// Panics if a tensor was not taken.
    pub fn close(self) {
        let left: Vec<String> = self.tensors.into_keys().collect();
        assert!(left.is_empty(), "tensors nobody asked for: {left:?}");
    }
}

/// A size in a config.
pub fn whole(config: &Value, name: &str) -> usize {
    config[name].as_u64().unwrap_or_else(|| panic!("no {name}")) as usize
}

/// A number in a config.
pub fn number(config: &Value, name: &str) -> f64 {
    config[name].as_f64().unwrap_or_else(|| panic!("no {name}"))
}
