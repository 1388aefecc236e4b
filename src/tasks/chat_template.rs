//! How a model wants to read a conversation: the Jinja template in its folder.

use std::collections::BTreeMap;

use serde_json::Value;

use super::tokenizer_config::{TOKENIZER_CONFIG, TokenizerConfig};
use crate::{
    Error, Result,
    jinja::{self, Template},
    weights::{Source, quote},
};

/// A template in a file of its own; where there is one, it is the one that counts.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The longest template; published ones have up to some 20 kB.
const MAX_TEMPLATE: u64 = 256 << 10;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct ChatMessage {
    /// Whose it is: `system`, `user` or `assistant`.
    pub role: String,
    /// What it says.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
///
/// It is rendered as `transformers` renders it: in Jinja, with `messages`, `add_generation_prompt`, the names of the special
/// tokens, `raise_exception` and `strftime_now`, and with block tags that take their line's spaces and line break with
/// them. A template comes from a file: what it may cost is bounded, and it reaches nothing but these values and the time.
#[derive(Debug)]
pub struct ChatTemplate {
    file: String,
    template: Template,
    /// Special tokens by their names.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
    ///
    /// # Errors
    /// A folder without a template, one that is too long, and one that is not Jinja.
    pub async fn read(source: &Source) -> Result<Self> {
        let TokenizerConfig { tokens, chat_template } = TokenizerConfig::read(source).await?;
        let config_file = source.path_of(TOKENIZER_CONFIG);
        let own = source.read_text(TEMPLATE_FILE, MAX_TEMPLATE).await?;
        let (file, text) = match own {
            Some(bytes) => {
                let file = source.path_of(TEMPLATE_FILE);
                let text = String::from_utf8(bytes)
                    .map_err(|error| Error::bad_file(&file, "content", error, "UTF-8"))?;
                (file, text)
            }
            None => {
                let text = in_config(chat_template.as_ref(), &config_file)?;
                (config_file, text)
            }
        };
        let template = Template::parse(&text).map_err(|error| described(&file, *error))?;
        Ok(Self { file, template, tokens })
    }

    /// A template from its text, for a model whose folder has none or a wrong one, with the special tokens that it may name, as
    /// `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// A text that is longer than 256 KiB, and one that is not Jinja.
    pub fn from_text<N: Into<String>, T: Into<String>>(
        text: &str,
        tokens: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self> {
        let file = "the given template".to_owned();
        if text.len() as u64 > MAX_TEMPLATE {
            let [found, most] = [text.len() as u64, MAX_TEMPLATE].map(crate::error::bytes);
            return Err(Error::bad_file(file, "chat template", found, format!("at most {most}")));
        }
        let template = Template::parse(text).map_err(|error| described(&file, *error))?;
        let tokens = tokens.into_iter().map(|(name, token)| (name.into(), token.into())).collect();
        Ok(Self { file, template, tokens })
    }

    /// The name of a special token: `bos_token`, `eos_token`, ….
    pub(super) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name).map(String::as_str)
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant's next message starts.
    ///
    /// # Errors
    /// What the template itself objects to, such as roles in another order, and a template that does not come to an end.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let text = |text: &str| jinja::Value::text(text);
        let message = |message: &ChatMessage| {
            jinja::Value::dict(vec![("role", text(&message.role)), ("content", text(&message.content))])
        };
        let values = || {
            let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), text(token)));
            let given = [
                ("messages", jinja::Value::list(messages.iter().map(message).collect())),
                ("add_generation_prompt", jinja::Value::Bool(add_generation_prompt)),
                // Templates ask whether these are none, not whether they are defined.
                ("tools", jinja::Value::None),
                ("documents", jinja::Value::None),
            ];
            tokens.chain(given).map(|(name, value)| (name.to_owned(), value)).collect()
        };
        self.template.render(values).map_err(|error| described(&self.file, *error))
    }
}

/// What a template's fault is to a person.
fn described(file: &str, error: jinja::Described) -> Error {
    let line = error.line.map_or(String::new(), |line| format!(", line {line}"));
    if error.raised {
        let found = format!("its objection {}", quote(&error.message));
        return Error::bad_file(file, format!("chat template{line}"), found, "a conversation that it takes");
    }
    let part = if error.part.is_empty() { String::new() } else { format!(", {}", quote(&error.part)) };
    let expected = "a template for this conversation";
    Error::bad_file(file, format!("chat template{line}{part}"), error.message, expected)
}

/// The template of a `tokenizer_config.json`: a string, or several with names, of which the default counts.
fn in_config(template: Option<&Value>, file: &str) -> Result<String> {
    let bad = |found: String, expected: &str| Error::bad_file(file, "chat_template", found, expected);
    // Names and templates, in a list of objects or in one object.
    let named: Vec<(&str, &Value)> = match template {
        None | Some(Value::Null) => {
            let expected = "a chat template: this model was not made for conversations, it continues texts";
            return Err(bad("nothing".to_owned(), expected));
        }
        Some(text @ Value::String(_)) => vec![("default", text)],
        Some(Value::Array(all)) => all
            .iter()
            .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?)))
            .collect(),
        Some(Value::Object(all)) => all.iter().map(|(name, template)| (name.as_str(), template)).collect(),
        Some(_) => return Err(bad("something else".to_owned(), "a string, or several with names")),
    };
    // Of entries with one name, the last counts, as in a dict.
    let default = named.iter().rev().find(|(name, _)| *name == "default");
    let Some(text) = default.and_then(|(_, template)| template.as_str()) else {
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        return Err(bad(quote(&names.join(", ")), "a template with the name default"));
    };
    if text.len() as u64 > MAX_TEMPLATE {
        let found = crate::error::bytes(text.len() as u64);
        return Err(bad(found, &format!("at most {}", crate::error::bytes(MAX_TEMPLATE))));
    }
    Ok(text.to_owned())
}
