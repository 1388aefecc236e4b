//! burn's side of the comparison, on its wgpu backend: answers requests, one JSON a line.
//!
//! ```text
//! {"op": "load", "model": FOLDER}               -> {"what": ..., "adapter": ...}
//! {"op": "generate", "prompt": [ids], "new": N} -> {"ids": [...], "first_s": ..., "rest_s": ...}
//! ```
//!
//! Options: `--prefill by-expert|all`, `--decode gather|by-expert|all`, `--dtype f32|f16`.

mod model;
mod weights;

use burn::tensor::{DType, Device, DeviceKind, Int, Tensor, TensorData};
use model::{JetMoe, Routing};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    time::Instant,
};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Request {
    Load { model: String },
    Generate { prompt: Vec<u32>, new: usize },
}

struct Side {
    device: Device,
    prefill: Routing,
    decode: Routing,
    dtype: DType,
    model: Option<JetMoe>,
}

impl Side {
    fn new() -> Outcome<Self> {
        let mut side = Self {
            device: Device::wgpu(DeviceKind::DefaultDevice),
            prefill: Routing::ByExpert,
            decode: Routing::Gather,
            dtype: DType::F32,
            model: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let (Some(option), Some(value)) = (arguments.next(), arguments.next()) {
            match option.as_str() {
                "--prefill" => side.prefill = routing(&value)?,
                "--decode" => side.decode = routing(&value)?,
                "--dtype" => side.dtype = if value == "f16" { DType::F16 } else { DType::F32 },
                _ => return Err(format!("unknown option {option}").into()),
            }
        }
        Ok(side)
    }

    fn answer(&mut self, request: Request) -> Outcome<Value> {
        match request {
            Request::Load { model } => {
                let model =
                    JetMoe::load(Path::new(&model), &self.device, self.dtype, self.prefill, self.decode)?;
                self.model = Some(model);
                self.device.sync()?;
                let adapter = self.device.identity().map_or("unknown".to_owned(), |identity| identity.name);
                let (prefill, decode) = (self.prefill, self.decode);
                Ok(json!({
                    "what": format!("burn 0.22.1, wgpu backend with fusion and autotune, {:?}, prefill {prefill:?}, decode {decode:?}", self.dtype),
                    "adapter": adapter,
                }))
            }
            Request::Generate { prompt, new } => {
                self.generate(self.model.as_ref().ok_or("no model is loaded")?, &prompt, new)
            }
        }
    }

    /// The token stays on the device for the next step, and is read for the caller as it comes.
    fn generate(&self, model: &JetMoe, prompt: &[u32], new: usize) -> Outcome<Value> {
        let start = Instant::now();
        let mut first = start;
        let mut cache = model.cache(prompt.len() + new);
        let prompt: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        let length = prompt.len();
        let mut feed = Tensor::<1, Int>::from_data(TensorData::new(prompt, [length]), &self.device);
        let mut ids = Vec::new();
        for i in 0..new {
            feed = model.next(&mut cache, feed);
            ids.push(feed.clone().into_scalar::<i64>());
            if i == 0 {
                first = Instant::now();
            }
        }
        let (first_s, rest_s) = ((first - start).as_secs_f64(), first.elapsed().as_secs_f64());
        Ok(json!({ "ids": ids, "first_s": first_s, "rest_s": rest_s }))
    }
}

fn routing(name: &str) -> Outcome<Routing> {
    match name {
        "gather" => Ok(Routing::Gather),
        "by-expert" => Ok(Routing::ByExpert),
        "all" => Ok(Routing::All),
        _ => Err(format!("no routing {name}: gather, by-expert or all").into()),
    }
}

fn main() -> Outcome<()> {
    let mut side = Side::new()?;
    for line in stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(request) => side.answer(request),
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(stdout(), "{answer}")?;
    }
    Ok(())
}
