//! An answer is the text of its ids, and a conversation goes on whatever they are.

use std::path::PathBuf;

use headwise::{Chat, ChatTemplate, Generate, GpuOptions, LoadOptions, Model, Source, block_on};
use serde_json::json;

use super::{reply, successors};

/// A model that writes `next` after each token, with this template.
pub fn load(
    test: &str,
    tokenizer: &str,
    vocab: usize,
    next: &[(usize, usize)],
    template: &str,
) -> (Model, ChatTemplate) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chat-text-{test}"));
    successors::write(&folder, tokenizer, vocab, next);
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    let source = Source::folder(folder);
    let gpu = block_on(headwise::Gpu::new(GpuOptions::new().kernels(headwise::KernelChoice::Tuned))).unwrap();
    let model = block_on(Model::load(&gpu, &source, LoadOptions::new())).unwrap();
    (model, block_on(ChatTemplate::read(&source)).unwrap())
}

/// Right is what `transformers` 5.24 decodes of the new ids, and reads of the conversation with it.
#[test]
fn an_answer_has_no_space_that_its_ids_do_not_have() {
    let template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'U: ' + m.content + ' ' }}{% else %}\
        {{ 'A: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}";
    let tokenizer = include_str!("../../../../tests/fixtures/tokenizers/vicuna.json");
    let (model, template) = load("vicuna", tokenizer, 273, &[(266, 270), (270, 2)], template);
    let mut chat = Chat::new(&model, template, None).unwrap();
    for (read, kept) in [(6, 0), (13, 8), (20, 15)] {
        let reply = reply(&mut chat, "hi", &Generate::new().greedy()).unwrap();
        assert_eq!((reply.text.as_str(), reply.ids.as_slice()), ("ok", &[270, 2][..]));
        assert_eq!((reply.prompt_tokens, reply.kept_tokens), (read, kept));
    }
}

#[test]
fn a_conversation_outlives_bytes_that_are_no_characters() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let tokenizer = include_str!("../../../../tests/fixtures/tokenizers/byte_fallback.json");
    let next = [(259, 13), (266, 13), (13, 243), (243, 261), (261, 265), (265, 2)];
    let (model, template) = load("bytes", tokenizer, 269, &next, template);
    let mut chat = Chat::new(&model, template, None).unwrap();
    let greedy = Generate::new().greedy();
    for turn in 1..=2 {
        let mut shown = String::new();
        let answer = chat.reply("a", &greedy, |token| {
            shown += &token.text;
            std::ops::ControlFlow::Continue(())
        });
        let answer = block_on(answer).unwrap();
        assert_eq!(
            (answer.text.as_str(), shown.as_str()),
            ("\u{fffd}\u{fffd}c end", "\u{fffd}\u{fffd}c end")
        );
        assert_eq!(chat.messages().len(), 2 * turn);
    }
    // Cut off within a character, the answer has what there is of it.
    let answer = reply(&mut chat, "a", &Generate::new().greedy().max_new(2)).unwrap();
    assert_eq!(answer.text, "\u{fffd}\u{fffd}");
    let answer = chat.reply("a", &greedy, |_| std::ops::ControlFlow::Break(()));
    assert_eq!(block_on(answer).unwrap().text, "\n");
}
