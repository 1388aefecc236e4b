//! What goes between the page and the engine as JSON; `web/src/engine_types.ts` is written of these types by their test.

use std::collections::BTreeMap;

use headwise::{Class, FilledMask, StopReason, TopToken};
use serde::{Deserialize, Serialize};

/// How to load.
#[derive(Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct LoadOptions {
    /// The name of a `KernelChoice`: which variant of the hot kernels runs. Measured where it is missing.
    #[cfg_attr(test, ts(as = "Option<String>"))]
    pub kernels: Option<headwise::KernelChoice>,
    /// The `remembered` of an earlier load, which is not measured again.
    pub remembered: Option<String>,
}

/// What to test.
#[derive(Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct SelftestOptions {
    /// The name of a `KernelChoice`: with which kernels the text is written. Measured where it is missing.
    #[cfg_attr(test, ts(as = "Option<String>"))]
    pub kernels: Option<headwise::KernelChoice>,
    /// The URL of the demo model's folder.
    pub model: String,
    /// A part of the names of the rows to test; all without it.
    pub filter: Option<String>,
}

/// The adapter that a model runs on, as far as the browser tells.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Adapter {
    pub name: String,
    pub backend: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The loaded model, and where it runs.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Info {
    pub family: String,
    pub task: &'static str,
    pub layers: u32,
    /// Layers that read a translation's source.
    pub encoder_layers: u32,
    pub experts: u32,
    /// Experts that each token uses in each layer.
    pub active: u32,
    /// How many of the active ones all tokens use: the first.
    pub shared: u32,
    /// How a text writes its masks, where the model fills them.
    pub mask: Option<String>,
    pub context: u32,
    pub parameters: u64,
    pub adapter: Adapter,
    /// The smallest and the largest subgroup, where kernels may use them.
    pub subgroups: Option<(u32, u32)>,
    /// The variant that runs of each kernel that has more than one.
    pub kernels: BTreeMap<&'static str, &'static str>,
    /// What to hand to the next load, where the kernels were measured.
    pub remembered: Option<String>,
}

/// The head experts of a token: `[layer][slot]`.
pub type Heads = Vec<Vec<u32>>;

/// One token of the prompt or of the continuation.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Token<'a> {
    pub id: u32,
    /// The text it adds; empty while a character is incomplete.
    pub text: &'a str,
    pub prompt: bool,
    /// `[layer][slot]`, as everywhere.
    pub heads: Heads,
    /// `ln p` in nats, and the likeliest in its place, where the options ask for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, ts(optional))]
    pub logprob: Option<f32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[cfg_attr(test, ts(optional, as = "Option<Vec<TopToken>>"))]
    pub top: &'a [TopToken],
}

/// What was generated.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Generated {
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    pub text: String,
    pub stopped: Option<StopReason>,
}

/// One token of a source, of a translation, or of a text with masks.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Piece {
    pub id: u32,
    /// The text it adds; nothing where it ends the text.
    pub text: String,
    pub mask: bool,
    pub heads: Heads,
    /// The experts that attend to the source of a translation.
    pub cross: Heads,
}

/// A translation, and the tokens of both sides.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Translation {
    pub text: String,
    /// Σ log p over the length penalty.
    pub score: f64,
    pub source: Vec<Piece>,
    pub target: Vec<Piece>,
}

/// A text with masks, and what may stand behind each. A candidate's text begins with a space where it begins a word.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Filled {
    pub tokens: Vec<Piece>,
    pub masks: Vec<FilledMask>,
}

/// What an image shows.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Classification {
    pub classes: Vec<Class>,
    /// Patches of the image's side.
    pub side: usize,
    /// The class token, then the patches row by row.
    pub tokens: Vec<Heads>,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use headwise::{
        Candidate, Capabilities, Generate, Penalties, Sampling, Score, Scored, SelftestReport, SelftestRow,
        SelftestStatus, Translate,
    };
    use ts_rs::{Config, TS};

    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../web/src/engine_types.ts");

    fn declared<T: TS>(config: &Config) -> String {
        format!("\n{}export {}\n", T::docs().unwrap_or_default(), T::decl(config))
    }

    /// The promise: the page's types are the engine's. `HEADWISE_WRITE=1` writes the file anew.
    #[test]
    fn the_pages_types_are_written_of_these() {
        // Ids, counts and seeds are far below 2^53.
        let config = Config::new().with_large_int("number");
        let types = [
            declared::<LoadOptions>(&config),
            declared::<Generate>(&config),
            declared::<Sampling>(&config),
            declared::<Penalties>(&config),
            declared::<Translate>(&config),
            declared::<Score>(&config),
            declared::<Info>(&config),
            declared::<Adapter>(&config),
            declared::<Token>(&config),
            declared::<TopToken>(&config),
            declared::<Generated>(&config),
            declared::<StopReason>(&config),
            declared::<Scored>(&config),
            declared::<Piece>(&config),
            declared::<Translation>(&config),
            declared::<Filled>(&config),
            declared::<FilledMask>(&config),
            declared::<Candidate>(&config),
            declared::<Classification>(&config),
            declared::<Class>(&config),
            declared::<SelftestOptions>(&config),
            declared::<SelftestReport>(&config),
            declared::<SelftestRow>(&config),
            declared::<SelftestStatus>(&config),
            declared::<Capabilities>(&config),
        ];
        let expected =
            format!("// Written by the test of crates/web/src/types.rs; do not edit.\n{}", types.concat())
                .replace(" \n", "\n");
        if std::env::var_os("HEADWISE_WRITE").is_some() {
            fs::write(FILE, &expected).unwrap();
        }
        let found = fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            found == expected,
            "web/src/engine_types.ts: found other types, expected those of crates/web/src/types.rs: \
             HEADWISE_WRITE=1 cargo test -p headwise-web"
        );
    }
}
