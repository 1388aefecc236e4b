//! What a model folder says of its special tokens and its chat template.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    Result,
    weights::{Fields, Source, shown},
};

/// What belongs to the tokenizer but is not in `tokenizer.json`, often a chat template too.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where special tokens stood before, and still do in many folders.
const TOKENS_MAP: &str = "special_tokens_map.json";
/// The longest of these; large ones name thousands of added tokens.
const MAX_CONFIG: u64 = 16 << 20;
/// The field that makes transformers look no further for special tokens.
const ADDED_TOKENS: &str = "added_tokens_decoder";
/// Special tokens that every tokenizer may have.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What transformers' classes of tokenizers have for tokens that no file names: their first three.
const OF_CLASS: [(&str, [&str; 3]); 4] = [
    ("LlamaTokenizer", ["<s>", "</s>", "<unk>"]),
    ("CodeLlamaTokenizer", ["<s>", "</s>", "<unk>"]),
    ("GPT2Tokenizer", ["<|endoftext|>"; 3]),
    ("GPTNeoXTokenizer", ["<|endoftext|>"; 3]),
];

/// The content of `tokenizer_config.json` and `special_tokens_map.json`, either of which may be missing.
pub(super) struct TokenizerConfig {
    /// Special tokens by their names: `bos_token`, `eos_token`, ….
    pub tokens: BTreeMap<String, String>,
    /// The field of this name, unread.
    pub chat_template: Option<Value>,
}

impl TokenizerConfig {
    /// Reads both files as transformers does: a token that the map names counts before that of the config, unless the config
    /// has `added_tokens_decoder`; then nobody asks for the map. What neither names is as the tokenizer's class has it.
    ///
    /// # Errors
    /// A file that is not JSON, and a token that is no text.
    pub async fn read(source: &Source) -> Result<Self> {
        let config = Fields::read(source, TOKENIZER_CONFIG, MAX_CONFIG).await?;
        let complete =
            config.as_ref().is_some_and(|config| config.get(&[ADDED_TOKENS]).is_ok_and(|f| f.is_some()));
        let map = match complete {
            true => None,
            false => Fields::read(source, TOKENS_MAP, MAX_CONFIG).await?,
        };
        let mut tokens = config.as_ref().map_or_else(BTreeMap::new, of_class);
        for fields in config.iter().chain(&map) {
            for name in fields.names().filter(|name| name.ends_with("_token")) {
                match token(fields, name)? {
                    Some(text) => tokens.insert(name.to_owned(), text),
                    None => tokens.remove(name),
                };
            }
        }
        let chat_template = config.and_then(|config| config.into_object().remove("chat_template"));
        Ok(Self { tokens, chat_template: chat_template.filter(|template| !template.is_null()) })
    }
}

/// The tokens that a class brings.
fn of_class(config: &Fields<'_>) -> BTreeMap<String, String> {
    let class = config.text("tokenizer_class").unwrap_or_default();
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let tokens = OF_CLASS.iter().find(|(name, _)| *name == class).map(|(_, tokens)| tokens);
    let named = TOKENS.iter().zip(tokens.into_iter().flatten());
    named.map(|(name, token)| ((*name).to_owned(), (*token).to_owned())).collect()
}

/// A special token: its text, or an object with its text; `null` is none.
fn token(fields: &Fields<'_>, name: &str) -> Result<Option<String>> {
    let value = fields.value(name);
    let text = value.and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
    match (value, text) {
        (_, Some(text)) => Ok(Some(text.to_owned())),
        // Switches such as `add_bos_token` end like the names of tokens.
        (Some(value), None) if TOKENS.contains(&name) => {
            Err(fields.bad(name, shown(value), "a text, or an object with its `content`"))
        }
        _ => Ok(None),
    }
}
