//! The engine, as JavaScript calls it.

use std::ops::ControlFlow;

use js_sys::Function;
use wasm_bindgen::prelude::*;

use headwise::{
    Choice, Error, Generate, Gpu, GpuOptions, Image, LayerRoutes, Model, Score, Source, TokenRoutes,
    Translate, internal::Variants,
};

use crate::types::{
    Adapter, Classification, Filled, Generated, Heads, Info, LoadOptions, Piece, Token, Translation,
};

/// A loaded model. `free()` releases its GPU memory.
#[wasm_bindgen]
pub struct Engine {
    model: Model,
}

#[wasm_bindgen]
impl Engine {
    /// Loads the model folder at the URL `base`; `on_progress(done, total)` counts bytes. `options` are the JSON of
    /// [`LoadOptions`].
    #[wasm_bindgen]
    pub async fn load(base: String, options: String, on_progress: Function) -> Result<Engine, JsError> {
        console_error_panic_hook::set_once();
        let LoadOptions { kernels, remembered } = parse(&options)?;
        let mut options = GpuOptions::new().kernels(kernels.unwrap_or_default());
        if let Some(note) = remembered {
            options = options.remembered_kernels(note);
        }
        let gpu = Gpu::new(options).await?;
        let report = |done: u64, total: u64| {
            // A page that throws while it draws a progress bar does not make the model bad.
            let _ = on_progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        };
        let options = headwise::LoadOptions::new().progress(report).warm_up(true);
        let model = Model::load(&gpu, &Source::http(base), options).await?;
        Ok(Engine { model })
    }

    /// What was loaded and where it runs, as JSON.
    pub fn info(&self) -> Result<String, JsError> {
        let info = self.model.info();
        let gpu = self.model.gpu();
        let adapter = gpu.capabilities();
        json(&Info {
            family: info.family.clone(),
            task: info.task,
            layers: info.layers,
            encoder_layers: info.encoder_layers,
            experts: info.attention.experts,
            active: info.attention.active,
            shared: info.attention.shared,
            mask: info.mask.and_then(|id| self.model.tokenizer().ok()?.token(id)),
            context: info.context,
            parameters: info.parameters,
            adapter: Adapter {
                name: adapter.name.clone(),
                backend: adapter.backend.clone(),
                kind: adapter.kind.clone(),
            },
            subgroups: adapter.subgroups,
            kernels: Variants::of(gpu).names().into_iter().collect(),
            remembered: gpu.kernels_to_remember(),
        })
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
                let token = json(&Token {
                    id: token.id,
                    text: &token.text,
                    prompt: token.prompt,
                    heads: token.routes.as_ref().map(own_heads).unwrap_or_default(),
                    logprob: token.logprob,
                    top: &token.top,
                });
                // A token is always JSON.
                let Ok(token) = token else { return ControlFlow::Break(()) };
                match on_token.call1(&JsValue::NULL, &token.into()) {
                    Ok(answer) if answer.as_bool() != Some(false) => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })
            .await?;
        json(&Generated {
            prompt_tokens,
            new_tokens: generation.ids.first().map_or(0, Vec::len),
            stopped: generation.stopped.first().copied(),
            text: generation.text.into_iter().next().unwrap_or_default(),
        })
    }

    /// How likely each token of each text is, given those before it: the ids and `ln p` in nats of each but the first.
    /// `texts` are a list of strings, `options` a [`Score`], both as JSON.
    pub async fn score(&self, texts: String, options: String) -> Result<String, JsError> {
        let texts: Vec<String> = parse(&texts)?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        json(&self.model.score(&texts, &parse::<Score>(&options)?).await?)
    }

    /// Translates a text by a [`Translate`] as JSON: the translation, its score, and the tokens of both with their heads.
    pub async fn translate(&self, text: String, options: String) -> Result<String, JsError> {
        let options = parse::<Translate>(&options)?.with_routes();
        let translation = self.model.translate(&[&text], &options, |_, _| {}).await?.remove(0);
        let tokenizer = self.model.tokenizer()?;
        let source = texts(tokenizer.pieces(&text)?);
        let target = tokenizer.texts(&translation.ids);
        json(&Translation {
            source: pieces(&translation.source_ids, source, &translation.source_routes, None),
            target: pieces(&translation.ids, target, &translation.routes, None),
            text: translation.text,
            score: translation.score,
        })
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
        json(&Filled { tokens, masks: filled.masks })
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
        json(&Classification {
            side: found.routes.len().saturating_sub(1).isqrt(),
            tokens: found.routes.iter().map(own_heads).collect(),
            classes: found.classes,
        })
    }
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

pub fn json(value: &impl serde::Serialize) -> Result<String, JsError> {
    Ok(serde_json::to_string(value)?)
}

pub fn parse<T: serde::de::DeserializeOwned>(options: &str) -> headwise::Result<T> {
    serde_json::from_str(options).map_err(|error| Error::Argument {
        name: "options",
        found: error.to_string(),
        expected: "JSON".to_owned(),
    })
}
