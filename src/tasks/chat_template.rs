//! How a model wants to read a conversation: the Jinja template in its folder.

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, Value as Jinja, syntax::SyntaxConfig};
use serde_json::Value;

use super::tokenizer_config::{TOKENIZER_CONFIG, TokenizerConfig};
use crate::{
    Error, Result,
    weights::{Source, quote},
};

/// A template in a file of its own; where there is one, it is the one that counts.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The longest template; published ones have up to some 20 kB.
const MAX_TEMPLATE: u64 = 256 << 10;
/// What one rendering may cost: about as many instructions, or 64 times as many bytes. A turn of a published template takes
/// under a hundred.
const FUEL: u64 = 1_000_000;
/// Calls within calls.
const MAX_DEPTH: usize = 64;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
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
/// tokens and `raise_exception`, and with block tags that take their line's spaces and line break with them. A template
/// comes from a file: what it may cost is bounded, and it reaches nothing but these values.
pub struct ChatTemplate {
    file: String,
    source: String,
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
        let template = Self { file, source: text, tokens };
        template.environment()?;
        Ok(template)
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
        let environment = self.environment()?;
        let template = environment.get_template(&self.file).map_err(|error| self.error(&error))?;
        let message = |message: &ChatMessage| {
            Jinja::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        };
        let messages: Jinja = messages.iter().map(message).collect();
        let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), Jinja::from(token.as_str())));
        let mut values: BTreeMap<&str, Jinja> = tokens.collect();
        values.insert("messages", messages);
        values.insert("add_generation_prompt", add_generation_prompt.into());
        // Templates ask whether these are none, not whether they are defined.
        values.insert("tools", ().into());
        values.insert("documents", ().into());
        template.render(Jinja::from_pairs(values)).map_err(|error| self.error(&error))
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| self.error(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_DEPTH);
        // A text for a model is not HTML, whatever the file's name ends with.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // Templates call Python's methods: `message.content.strip()`.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template(&self.file, &self.source).map_err(|error| self.error(&error))?;
        Ok(environment)
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
        let found = match error.detail() {
            Some(detail) => format!("{}: {}", error.kind(), quote(detail)),
            None => error.kind().to_string(),
        };
        Error::bad_file(&self.file, format!("chat template{line}"), found, "a template for this conversation")
    }
}

/// The template of a `tokenizer_config.json`: a string, or several with names, of which the default counts.
fn in_config(template: Option<&Value>, file: &str) -> Result<String> {
    let bad = |found: String, expected: &str| Error::bad_file(file, "chat_template", found, expected);
    let text = match template {
        None => {
            let expected = "a chat template: this model was not made for conversations, it continues texts";
            return Err(bad("nothing".to_owned(), expected));
        }
        Some(Value::String(text)) => text,
        Some(Value::Array(named)) => {
            let field =
                |entry: &'_ Value, field: &str| entry.get(field).and_then(Value::as_str).map(str::to_owned);
            let names: Vec<String> = named.iter().filter_map(|entry| field(entry, "name")).collect();
            let default = named.iter().find(|entry| entry["name"] == "default");
            let Some(text) = default.and_then(|entry| entry["template"].as_str()) else {
                return Err(bad(quote(&names.join(", ")), "a template with the name default"));
            };
            text
        }
        Some(_) => return Err(bad("something else".to_owned(), "a string, or a list of named ones")),
    };
    if text.len() as u64 > MAX_TEMPLATE {
        let found = crate::error::bytes(text.len() as u64);
        return Err(bad(found, &format!("at most {}", crate::error::bytes(MAX_TEMPLATE))));
    }
    Ok(text.to_owned())
}
