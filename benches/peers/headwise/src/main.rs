//! headwise's side of the comparison: answers requests, one JSON a line.
//!
//! ```text
//! {"op": "load", "model": FOLDER}               -> {"what": ..., "adapter": ...}
//! {"op": "generate", "prompt": [ids], "new": N} -> {"ids": [...], "first_s": ..., "rest_s": ...}
//! {"op": "matmul", "n": N}                      -> {"gflops": ...}
//! ```

use std::{
    io::{BufRead, Write, stdin, stdout},
    ops::ControlFlow,
    time::Instant,
};

use headwise::{
    Generate, Gpu, GpuOptions, LoadOptions, Model, Precision, Source, block_on, internal::Yardstick,
};
use serde::Deserialize;
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Request {
    Load { model: String },
    Generate { prompt: Vec<u32>, new: usize },
    Matmul { n: u32 },
}

struct Side {
    gpu: Gpu,
    model: Option<Model>,
}

impl Side {
    fn answer(&mut self, request: Request) -> Outcome<Value> {
        match request {
            Request::Load { model } => self.load(&model),
            Request::Generate { prompt, new } => self.generate(&prompt, new),
            Request::Matmul { n } => self.matmul(n),
        }
    }

    fn load(&mut self, folder: &str) -> Outcome<Value> {
        let options = LoadOptions::new();
        let model = self.model.insert(block_on(Model::load(&self.gpu, &Source::folder(folder), options))?);
        let adapter = self.gpu.capabilities();
        Ok(json!({
            "what": format!("weights {:?}", model.precision()).to_lowercase(),
            "adapter": format!("{} ({}), {}", adapter.name, adapter.driver, adapter.backend),
        }))
    }

    fn generate(&self, prompt: &[u32], new: usize) -> Outcome<Value> {
        let model = self.model.as_ref().ok_or("no model is loaded")?;
        let options = Generate::new().greedy().max_new(new).stop_at(vec![]);
        let start = Instant::now();
        let (mut first, mut last) = (start, start);
        let generation = block_on(model.generate_ids(&[prompt], &options, |_| {
            last = Instant::now();
            if first == start {
                first = last;
            }
            ControlFlow::Continue(())
        }))?;
        Ok(json!({
            "ids": generation.ids[0],
            "first_s": (first - start).as_secs_f64(),
            "rest_s": (last - first).as_secs_f64(),
        }))
    }

    /// The tiled kernel of prefill on dense f32 matrices.
    fn matmul(&self, n: u32) -> Outcome<Value> {
        let mut product = Yardstick::dense(&self.gpu, n, n, Precision::F32)?;
        Ok(json!({ "gflops": product.rate()? / 1e9 }))
    }
}

fn main() -> Outcome<()> {
    let mut side = Side { gpu: block_on(Gpu::new(GpuOptions::new()))?, model: None };
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
