//! What the fuzz target `template` calls.

use serde_json::json;

use crate::{ChatMessage, ChatTemplate, Result, Source};

/// Reads a text as a chat template and renders a conversation with it.
///
/// # Errors
/// What a chat would report.
pub fn check_template(template: &str) -> Result<String> {
    let config = json!({ "chat_template": template, "bos_token": "<s>", "eos_token": "</s>" });
    let files = vec![("tokenizer_config.json".to_owned(), config.to_string().into_bytes())];
    let template = pollster::block_on(ChatTemplate::read(&Source::memory("memory", files)))?;
    let said = [("system", "Be brief."), ("user", "Hi <b> & é"), ("assistant", "Hello"), ("user", "\n")];
    template.render(&said.map(|(role, content)| ChatMessage::new(role, content)), true)
}
