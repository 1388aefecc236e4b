//! The JavaScript surface of the wasm build. `web/src/worker.ts` is its one caller.
#![cfg(target_arch = "wasm32")]

use std::{collections::BTreeMap, ops::ControlFlow};

use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use headwise::{
    Choice, Error, Generate, Gpu, GpuOptions, Image, KernelChoice, LayerRoutes, LoadOptions, Model, Score,
    Selftest, SelftestRow, Source, TokenRoutes, TopToken, Translate, internal::Variants,
};

/// A loaded model. `free()` releases its GPU memory.
#[wasm_bindgen]
pub struct Engine {
    model: Model,
}

/// How to load, from the page's JSON.
#[derive(Deserialize)]
struct Loading {
    #[serde(default)]
    kernels: KernelChoice,
    remembered: Option<String>,
}

/// What to test, from the page's JSON.
#[derive(Deserialize)]
struct Testing {
    #[serde(default)]
    kernels: KernelChoice,
    /// The URL of the demo model's folder.
    model: String,
    /// A part of the names of the rows to test; all without it.
    filter: Option<String>,
}

/// The head experts of a token: `[layer][slot]`.
type Heads = Vec<Vec<u32>>;

#[derive(Serialize)]
struct Token<'a> {
    id: u32,
    text: &'a str,
    prompt: bool,
    heads: Heads,
    /// `ln p` in nats, and the likeliest in its place, where the options ask for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprob: Option<f32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    top: &'a [TopToken],
}

/// A token of a source, of a text with masks, or of a translation.
#[derive(Serialize)]
struct Piece {
    id: u32,
    /// What it adds to the text; nothing where it ends one.
    text: String,
    mask: bool,
    heads: Heads,
    /// The heads that attend to the source of a translation.
    cross: Heads,
}

#[wasm_bindgen]
impl Engine {
    /// Loads the model folder at the URL `base`; `on_progress(done, total)` counts bytes. `options` are JSON:
    /// `kernels` is the name of a [`KernelChoice`], `auto` where it is missing; `remembered` is what [`info`](Self::info)
    /// had by that name before, so that `auto` need not measure again.
    #[wasm_bindgen]
    pub async fn load(base: String, options: String, on_progress: Function) -> Result<Engine, JsError> {
        console_error_panic_hook::set_once();
        let Loading { kernels, remembered } = parse(&options)?;
        let mut options = GpuOptions::new().kernels(kernels);
        if let Some(note) = remembered {
            options = options.remembered_kernels(note);
        }
        let gpu = Gpu::new(options).await?;
        let report = |done: u64, total: u64| {
            // A page that throws while it draws a progress bar does not make the model bad.
            let _ = on_progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        };
        let options = LoadOptions::new().progress(report).warm_up(true);
        let model = Model::load(&gpu, &Source::http(base), options).await?;
        Ok(Engine { model })
    }

    /// What was loaded and where it runs, as JSON.
    pub fn info(&self) -> String {
        let info = self.model.info();
        let gpu = self.model.gpu();
        let adapter = gpu.capabilities();
        let kernels: BTreeMap<_, _> = Variants::of(gpu).names().into_iter().collect();
        let mask = info.mask.and_then(|id| self.model.tokenizer().ok()?.token(id));
        serde_json::json!({
            "family": info.family,
            "task": info.task,
            "layers": info.layers,
            "encoder_layers": info.encoder_layers,
            "experts": info.attention.experts,
            "active": info.attention.active,
            "shared": info.attention.shared,
            "mask": mask,
            "context": info.context,
            "parameters": info.parameters,
            "adapter": { "name": adapter.name, "backend": adapter.backend, "type": adapter.kind },
            "subgroups": adapter.subgroups,
            "kernels": kernels,
            "remembered": gpu.kernels_to_remember(),
        })
        .to_string()
    }

    /// Continues `prompt`. `options` are a [`Generate`] as JSON. `on_token` gets each token as JSON, the prompt's too, and
    /// stops the generation by returning false.
    pub async fn generate(
        &self,
        prompt: String,
        options: String,
        on_token: Function,
    ) -> Result<String, JsError> {
        let options = parse::<Generate>(&options)?.with_routes();
        let mut prompt_tokens = 0;
        let generation = self
            .model
            .generate(&prompt, &options, |token| {
                prompt_tokens += usize::from(token.prompt);
                let json = serde_json::json!(Token {
                    id: token.id,
                    text: &token.text,
                    prompt: token.prompt,
                    heads: token.routes.as_ref().map(own_heads).unwrap_or_default(),
                    logprob: token.logprob,
                    top: &token.top,
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
            "text": generation.text.first(),
            "stopped": generation.stopped.first(),
        })
        .to_string())
    }

    /// How likely each token of each text is, given those before it: the ids and `ln p` in nats of each but the first.
    /// `texts` are a list of strings, `options` a [`Score`], both as JSON.
    pub async fn score(&self, texts: String, options: String) -> Result<String, JsError> {
        let texts: Vec<String> = parse(&texts)?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let scored = self.model.score(&texts, &parse::<Score>(&options)?).await?;
        Ok(serde_json::json!(scored).to_string())
    }

    /// Translates a text by a [`Translate`] as JSON: the translation, its score, and the tokens of both with their heads.
    pub async fn translate(&self, text: String, options: String) -> Result<String, JsError> {
        let options = parse::<Translate>(&options)?.with_routes();
        let translation = self.model.translate(&[&text], &options, |_, _| {}).await?.remove(0);
        let tokenizer = self.model.tokenizer()?;
        let source = texts(tokenizer.pieces(&text)?);
        let target = tokenizer.texts(&translation.ids);
        Ok(serde_json::json!({
            "text": translation.text,
            "score": translation.score,
            "source": pieces(&translation.source_ids, source, &translation.source_routes, None),
            "target": pieces(&translation.ids, target, &translation.routes, None),
        })
        .to_string())
    }

    /// The `top` likeliest tokens behind each mask of a text. A candidate's text begins with a space where it begins
    /// a word.
    pub async fn fill(&self, text: String, top: usize) -> Result<String, JsError> {
        let mut filled = self.model.fill(&text, top).await?;
        let tokenizer = self.model.tokenizer()?;
        let before = tokenizer.encode("a")?;
        for candidate in filled.masks.iter_mut().flat_map(|mask| &mut mask.candidates) {
            let mut stream = tokenizer.stream();
            stream.go_on_from(&before);
            let text = stream.push(candidate.id) + &stream.finish();
            if !text.is_empty() {
                candidate.text = text;
            }
        }
        let texts = texts(tokenizer.pieces(&text)?);
        let tokens = pieces(&filled.ids, texts, &filled.routes, self.model.info().mask);
        Ok(serde_json::json!({ "tokens": tokens, "masks": filled.masks }).to_string())
    }

    /// The `top` likeliest classes of an image, `[height, width, channels]` bytes, and the heads of its tokens: the
    /// class token, then the patches row by row.
    pub async fn classify(
        &self,
        width: usize,
        height: usize,
        channels: usize,
        pixels: Vec<u8>,
        top: usize,
    ) -> Result<String, JsError> {
        let image = Image::new(width, height, channels, pixels)?;
        let found = self.model.classify(&[image], top).await?.remove(0);
        Ok(serde_json::json!({
            "classes": found.classes,
            "side": found.routes.len().saturating_sub(1).isqrt(),
            "tokens": found.routes.iter().map(own_heads).collect::<Vec<_>>(),
        })
        .to_string())
    }
}

/// Tests whether the browser's device computes right: the report as JSON. `on_row` gets each row as JSON, when it begins and after
/// each of its cases.
#[wasm_bindgen]
pub async fn selftest(options: String, on_row: Function) -> Result<String, JsError> {
    console_error_panic_hook::set_once();
    let Testing { kernels, model, filter } = parse(&options)?;
    let gpu = Gpu::new(GpuOptions::new().kernels(kernels)).await?;
    let (prompt, expected) = headwise_model_prose::GREEDY;
    let mut selftest = Selftest::new()
        .text(Source::http(model), prompt, expected, headwise_model_prose::GREEDY_TOKENS)
        .progress(|row: &SelftestRow| {
            let _ = on_row.call1(&JsValue::NULL, &serde_json::json!(row).to_string().into());
        });
    if let Some(filter) = filter {
        selftest = selftest.filter(filter);
    }
    Ok(serde_json::json!(gpu.selftest(selftest).await?).to_string())
}

fn heads_of(routes: &TokenRoutes, of: impl Fn(&LayerRoutes) -> &[Choice]) -> Heads {
    let layers = routes.layers.iter();
    layers.map(|layer| of(layer).iter().map(|choice| choice.expert).collect()).collect()
}

fn own_heads(routes: &TokenRoutes) -> Heads {
    heads_of(routes, |layer| &layer.attention)
}

/// Tokens with their choices; `texts` says what each stands for, an end token nothing.
fn pieces(ids: &[u32], texts: Vec<String>, routes: &[TokenRoutes], mask: Option<u32>) -> Vec<Piece> {
    let texts = texts.into_iter().chain(std::iter::repeat(String::new()));
    let tokens = ids.iter().zip(texts).zip(routes);
    let piece = |((&id, text), routes): ((&u32, String), &TokenRoutes)| Piece {
        id,
        text,
        mask: mask == Some(id),
        heads: own_heads(routes),
        cross: heads_of(routes, |layer| &layer.cross),
    };
    tokens.map(piece).collect()
}

fn texts(pieces: Vec<(u32, String)>) -> Vec<String> {
    pieces.into_iter().map(|(_, text)| text).collect()
}

fn parse<T: serde::de::DeserializeOwned>(options: &str) -> headwise::Result<T> {
    serde_json::from_str(options).map_err(|error| Error::Argument {
        name: "options",
        found: error.to_string(),
        expected: "JSON".to_owned(),
    })
}
