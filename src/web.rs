//! The JavaScript surface of the wasm build. `web/src/worker.ts` is its one caller.

use std::ops::ControlFlow;

use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use crate::{Error, Generate, Gpu, GpuOptions, LoadOptions, Model, Source};

/// A loaded model. `free()` releases its GPU memory.
#[wasm_bindgen]
pub struct Engine {
    model: Model,
}

/// How to generate, from the page's JSON. What is missing keeps the library's default.
#[derive(Deserialize)]
struct Options {
    max_new: Option<usize>,
    #[serde(default)]
    greedy: bool,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    seed: Option<u64>,
}

#[derive(Serialize)]
struct Token<'a> {
    id: u32,
    text: &'a str,
    prompt: bool,
    /// The head experts: `[layer][slot]`.
    heads: Vec<Vec<u32>>,
}

#[wasm_bindgen]
impl Engine {
    /// Loads the model folder at the URL `base`; `on_progress(done, total)` counts bytes.
    #[wasm_bindgen]
    pub async fn load(base: String, on_progress: Function) -> Result<Engine, JsError> {
        console_error_panic_hook::set_once();
        let gpu = Gpu::new(GpuOptions::new()).await?;
        let report = |done: u64, total: u64| {
            // A page that throws while it draws a progress bar does not make the model bad.
            let _ = on_progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        };
        let model = Model::load(&gpu, &Source::http(base), LoadOptions::new().progress(report)).await?;
        compile_kernels(&model).await?;
        Ok(Engine { model })
    }

    /// What was loaded and where it runs, as JSON.
    pub fn info(&self) -> String {
        let info = self.model.info();
        let adapter = self.model.gpu().capabilities();
        serde_json::json!({
            "family": info.family,
            "layers": info.layers,
            "experts": info.attention.experts,
            "active": info.attention.active,
            "context": info.context,
            "parameters": info.parameters,
            "adapter": { "name": adapter.name, "backend": adapter.backend, "type": adapter.kind },
        })
        .to_string()
    }

    /// Continues `prompt`. `on_token` gets each token as JSON, the prompt's too, and stops the generation by
    /// returning false.
    pub async fn generate(
        &self,
        prompt: String,
        options: String,
        on_token: Function,
    ) -> Result<String, JsError> {
        let options = generate_options(&options)?;
        let mut prompt_tokens = 0;
        let generation = self
            .model
            .generate(&prompt, &options, |token| {
                prompt_tokens += usize::from(token.prompt);
                let layers = token.routes.iter().flat_map(|routes| &routes.layers);
                let heads = layers.map(|layer| layer.attention.iter().map(|choice| choice.expert).collect());
                let json = serde_json::json!(Token {
                    id: token.id,
                    text: &token.text,
                    prompt: token.prompt,
                    heads: heads.collect(),
                });
                match on_token.call1(&JsValue::NULL, &json.to_string().into()) {
                    Ok(answer) if answer.as_bool() != Some(false) => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })
            .await?;
        let new_tokens = generation.ids.first().map_or(0, Vec::len);
        Ok(serde_json::json!({
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "stopped": generation.stopped.first(),
        })
        .to_string())
    }
}

/// Writes two throw-away texts, so that the first real one does not wait for its kernels to be compiled.
async fn compile_kernels(model: &Model) -> crate::Result<()> {
    for options in [Generate::new(), Generate::new().greedy()] {
        model.generate_ids(&[&[0; 8]], &options.max_new(2), |_| ControlFlow::Continue(())).await?;
    }
    Ok(())
}

fn generate_options(json: &str) -> Result<Generate, JsError> {
    let given: Options =
        serde_json::from_str(json).map_err(|error| Error::argument("options", error, "JSON"))?;
    let mut options = Generate::new().with_routes();
    if let Some(max_new) = given.max_new {
        options = options.max_new(max_new);
    }
    if let Some(temperature) = given.temperature {
        options = options.temperature(temperature);
    }
    if let Some(top_k) = given.top_k {
        options = options.top_k(top_k);
    }
    if let Some(top_p) = given.top_p {
        options = options.top_p(top_p);
    }
    if let Some(seed) = given.seed {
        options = options.seed(seed);
    }
    Ok(if given.greedy { options.greedy() } else { options })
}
