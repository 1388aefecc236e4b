//! The promise: a conversation is given to the model as its template says, what was read stays read, and the answers are
//! those of a model that reads everything anew.

#[path = "chat/command.rs"]
mod command;
#[path = "chat/hostile.rs"]
mod hostile;
#[path = "chat/published.rs"]
mod published;
#[path = "chat/stops.rs"]
mod stops;
#[path = "../../../tests/support/successors.rs"]
mod successors;
#[path = "chat/templates.rs"]
mod templates;
#[path = "chat/text.rs"]
mod text;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use headwise::{
    Cancel, Chat, ChatMessage, ChatTemplate, Error, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions,
    Model, Reply, Source, StopReason, block_on, internal::OptionsForTests,
};
use serde_json::json;

const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/prose");

/// A template for a model that has seen plays.
const PLAY: &str = "{% for message in messages %}{{ message['role'] | upper }}. {{ message['content'].strip() }}\n\
    {% endfor %}{% if add_generation_prompt %}ASSISTANT.{% endif %}";

/// The prose model with this template beside it.
fn folder(test: &str, template: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chat-{test}"));
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(folder.join("part-2")).unwrap();
    for (file, bytes) in headwise_model_prose::FILES.iter().chain(headwise_model_prose_part_2::FILES) {
        fs::write(folder.join(file), bytes).unwrap();
    }
    let config = json!({ "chat_template": template });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn load(test: &str) -> (Model, impl Fn() -> ChatTemplate) {
    let source = Source::folder(folder(test, PLAY));
    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned)))
        .expect("this needs a GPU adapter: scripts/setup vulkan");
    let model = block_on(Model::load(&gpu, &source, LoadOptions::new())).unwrap();
    (model, move || block_on(ChatTemplate::read(&source)).unwrap())
}

fn reply(chat: &mut Chat, text: &str, options: &Generate) -> Result<Reply, Error> {
    block_on(chat.reply(text, options, |_| ControlFlow::Continue(())))
}

/// The ids of a conversation up to the next answer.
fn prompt(model: &Model, template: &ChatTemplate, messages: &[ChatMessage]) -> Vec<u32> {
    model.tokenizer().unwrap().encode(&template.render(messages, true).unwrap()).unwrap()
}

/// How much two sequences have in common at their start.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Compares an answer with one run over the whole conversation, which `messages` has up to the question; `known` is what
/// the model had read before. Returns what it has read after.
#[track_caller]
fn assert_as_anew(
    model: &Model,
    template: &ChatTemplate,
    messages: &[ChatMessage],
    options: &Generate,
    known: &[u32],
    reply: &Reply,
) -> Vec<u32> {
    let prompt = prompt(model, template, messages);
    let anew = |ids: &[u32], options: &Generate| {
        block_on(model.generate_ids(&[ids], options, |_| ControlFlow::Continue(()))).unwrap()
    };
    let whole = anew(&prompt, options);
    assert_eq!(reply.ids, whole.ids[0]);
    assert_eq!(reply.stopped, whole.stopped[0]);
    assert_eq!(reply.text, model.tokenizer().unwrap().decode(&reply.ids).unwrap());

    assert_eq!(reply.prompt_tokens, prompt.len());
    assert_eq!(reply.kept_tokens, common(known, &prompt).min(prompt.len() - 1));
    // The work is that of the whole run less that of reading what was kept.
    let info = model.info();
    let head = u64::from(info.vocab) * u64::from(info.width);
    let kept = match reply.kept_tokens {
        0 => 0,
        kept => anew(&prompt[..kept], &options.clone().max_new(0)).counters.macs - head,
    };
    assert_eq!(reply.counters.macs, whole.counters.macs - kept);
    prompt.iter().chain(&reply.ids).copied().collect()
}

#[test]
fn turns_read_only_what_is_new_and_answer_as_if_all_were() {
    let (model, template) = load("turns");
    let options = Generate::new().greedy().max_new(20);
    let mut chat = Chat::new(&model, template(), None).unwrap();
    chat.set_messages([ChatMessage::new("system", "Speak of kings.")]);
    let mut known = Vec::new();
    let mut kept = Vec::new();
    for text in ["Who art thou, and what is thy name?", "Where is the king?", "And the queen?"] {
        let reply = reply(&mut chat, text, &options).unwrap();
        assert_eq!((reply.ids.len(), reply.stopped), (20, StopReason::MaxNew));
        let (answer, before) = chat.messages().split_last().unwrap();
        assert_eq!(*answer, ChatMessage::new("assistant", reply.text.as_str()));
        known = assert_as_anew(&model, &template(), before, &options, &known, &reply);
        // The last token of an answer is read with the next turn.
        known.pop();
        kept.push(reply.kept_tokens);
    }
    assert!(kept[0] == 0 && kept[1] > 20 && kept[2] > kept[1] + 20, "{kept:?}");

    // Another start of the conversation is another prefix.
    chat.set_messages([
        ChatMessage::new("system", "Speak of kings."),
        ChatMessage::new("user", "Who art thou?"),
    ]);
    let reply = reply(&mut chat, "And I?", &options).unwrap();
    assert!((5..kept[2]).contains(&reply.kept_tokens), "{}", reply.kept_tokens);
    let before = &chat.messages()[..3];
    assert_as_anew(&model, &template(), before, &options, &known, &reply);
}

#[test]
fn steps_past_an_answers_end_are_forgotten() {
    let (model, template) = load("past");
    let greedy = Generate::new().greedy().max_new(20);
    let question = "What is the law of the land?";
    let ids = reply(&mut Chat::new(&model, template(), None).unwrap(), question, &greedy).unwrap().ids;
    // The first token from the sixth on that has not come before.
    let stop = (6..20).find(|&at| !ids[..at].contains(&ids[at])).unwrap();

    let stopping = greedy.clone().stop_at([ids[stop]]);
    let mut chat = Chat::new(&model, template(), None).unwrap();
    let first = reply(&mut chat, question, &stopping).unwrap();
    assert_eq!((first.ids.as_slice(), first.stopped), (&ids[..=stop], StopReason::StopToken));
    let known = assert_as_anew_first(&model, &template(), &chat, &stopping, &first);
    let second = reply(&mut chat, "And of the sea?", &greedy).unwrap();
    assert_as_anew(&model, &template(), &chat.messages()[..3], &greedy, &known, &second);

    // The same for an answer that its reader ends, and one that is cancelled before it begins.
    let mut chat = Chat::new(&model, template(), None).unwrap();
    let mut seen = 0;
    let until = |_: &headwise::Token| {
        seen += 1;
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let first = block_on(chat.reply(question, &greedy, until)).unwrap();
    assert_eq!((first.ids.as_slice(), first.stopped), (&ids[..5], StopReason::Cancelled));
    let cancel = Cancel::new();
    cancel.cancel();
    let none = reply(&mut chat, "Yea?", &greedy.clone().cancel(&cancel)).unwrap();
    assert!(none.stopped == StopReason::Cancelled && none.ids.len() <= 1, "{none:?}");
    let third = reply(&mut chat, "And of the sea?", &greedy).unwrap();
    let whole = prompt(&model, &template(), &chat.messages()[..5]);
    // The turn that was cancelled before it began read nothing, and forgot nothing.
    let known = [prompt(&model, &template(), &chat.messages()[..1]), first.ids].concat();
    assert_eq!(third.kept_tokens, common(&known, &whole));
    let anew = block_on(model.generate_ids(&[&whole], &greedy, |_| ControlFlow::Continue(()))).unwrap();
    assert_eq!(third.ids, anew.ids[0]);
}

/// As [`assert_as_anew`] for a first answer.
#[track_caller]
fn assert_as_anew_first(
    model: &Model,
    template: &ChatTemplate,
    chat: &Chat,
    options: &Generate,
    reply: &Reply,
) -> Vec<u32> {
    let prompt = prompt(model, template, &chat.messages()[..1]);
    let whole = block_on(model.generate_ids(&[&prompt], options, |_| ControlFlow::Continue(()))).unwrap();
    assert_eq!((&reply.ids, reply.kept_tokens), (&whole.ids[0], 0));
    prompt.iter().chain(&reply.ids).copied().collect()
}

#[test]
fn sampled_answers_are_those_of_the_whole_too() {
    let (model, template) = load("sampled");
    let mut chat = Chat::new(&model, template(), None).unwrap();
    for (turn, text) in ["My lord?", "What news?", "And then?"].into_iter().enumerate() {
        // Penalties count what the conversation has, kept or read.
        let options = Generate::new().max_new(16).seed(turn as u64 + 3);
        let options = options.repetition_penalty(1.0 + turn as f32 / 5.0).frequency_penalty(0.3).logprobs(2);
        let reply = reply(&mut chat, text, &options).unwrap();
        let messages = chat.messages();
        let whole = prompt(&model, &template(), &messages[..messages.len() - 1]);
        let anew = block_on(model.generate_ids(&[&whole], &options, |_| ControlFlow::Continue(()))).unwrap();
        assert_eq!(reply.ids, anew.ids[0], "turn {turn}");
    }
}

#[test]
fn a_full_context_is_an_error_that_changes_nothing() {
    let (model, template) = load("full");
    let greedy = Generate::new().greedy().max_new(500);
    let mut chat = Chat::new(&model, template(), Some(48)).unwrap();
    let first = reply(&mut chat, "Speak.", &greedy).unwrap();
    assert_eq!((first.stopped, first.prompt_tokens + first.ids.len()), (StopReason::Context, 48));
    let messages = chat.messages().to_vec();
    let error = reply(&mut chat, "More.", &greedy).unwrap_err().to_string();
    assert!(error.starts_with("conversation: found ") && error.contains("fewer than the 48"), "{error}");
    assert_eq!(chat.messages(), messages);

    // What is left of it is as good as new, although the last steps ran into the end.
    chat.set_messages([]);
    let again = reply(&mut chat, "Speak.", &greedy).unwrap();
    assert_eq!(again.ids, first.ids);
    assert_eq!(again.kept_tokens, first.prompt_tokens - 1);

    for context in [0, 257] {
        let error = Chat::new(&model, template(), Some(context)).err().unwrap().to_string();
        assert_eq!(error, format!("context: found {context}, expected at least 1, at most 256"));
    }
}

/// Keys of a turn that was cancelled while it was read are not taken for those of a turn that was read.
#[test]
fn a_turn_that_is_cancelled_while_it_is_read_is_read_again() {
    let source = Source::folder(folder("cancelled-turn", PLAY));
    let read = |options: GpuOptions| {
        let gpu = block_on(Gpu::new(options.kernels(KernelChoice::Tuned))).unwrap();
        block_on(Model::load(&gpu, &source, LoadOptions::new())).unwrap()
    };
    let template = || block_on(ChatTemplate::read(&source)).unwrap();
    let options = || Generate::new().greedy().max_new(6);
    let say = "What news do you bring from the king, and who stands with him at the gate of the city?";
    let (whole, cut) = (read(GpuOptions::new()), read(GpuOptions::new().submission_macs(1_000_000)));

    let mut chat = Chat::new(&cut, template(), None).unwrap();
    reply(&mut chat, "Hello", &options()).unwrap();
    let before = chat.messages().to_vec();
    for at in [1, 5, 20] {
        let (cancel, seen) = (Cancel::new(), std::sync::atomic::AtomicU64::new(0));
        let handle = cancel.clone();
        let stop = move |_, _| {
            if seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == at {
                handle.cancel();
            }
        };
        let cancelled = reply(&mut chat, say, &options().progress(stop).cancel(&cancel)).unwrap();
        assert_eq!((cancelled.stopped, cancelled.ids.len()), (StopReason::Cancelled, 0));
        assert_eq!(cancelled.counters.passes, at);
        chat.set_messages(before.clone());
    }
    let found = reply(&mut chat, say, &options()).unwrap();

    let mut anew = Chat::new(&whole, template(), None).unwrap();
    anew.set_messages(before);
    assert_eq!(found.ids, reply(&mut anew, say, &options()).unwrap().ids);
}

#[test]
fn a_streamed_answer_is_the_reply_and_gives_the_conversation_back() {
    let (model, template) = load("streamed");
    let options = Generate::new().greedy().stop_at([]).max_new(12);
    let mut plain = Chat::new(&model, template(), None).unwrap();
    let expected = reply(&mut plain, "My lord?", &options).unwrap();
    let mut tokens = Chat::new(&model, template(), None).unwrap().stream("My lord?", &options);
    let mut text = String::new();
    while let Some(token) = block_on(tokens.next()) {
        text += &token.unwrap().text;
    }
    let found = tokens.reply().unwrap();
    assert_eq!((&text, &found.ids, found.counters), (&expected.text, &expected.ids, expected.counters));
    let chat = block_on(tokens.stop()).unwrap();
    assert_eq!(chat.messages(), plain.messages());

    // Its reader ends it: what was said stays.
    let mut tokens = chat.stream("And of the sea?", &options.clone().max_new(200));
    let first = block_on(tokens.next()).unwrap().unwrap();
    let chat = block_on(tokens.stop()).unwrap();
    assert_eq!(chat.messages().len(), 4);
    assert!(chat.messages()[3].content.starts_with(&first.text));
    // What is wrong comes as an item, and leaves it as it was.
    let mut tokens = chat.stream("King ".repeat(2000), &options);
    assert!(block_on(tokens.next()).unwrap().is_err());
    assert!(block_on(tokens.next()).is_none() && tokens.reply().is_none());
    let mut chat = block_on(tokens.stop()).unwrap();
    assert_eq!(chat.messages().len(), 4);

    // So does a future that is dropped in its midst.
    let before = chat.messages().to_vec();
    {
        let mut dropped = std::pin::pin!(chat.reply("What news?", &options, |_| ControlFlow::Continue(())));
        let once = |context: &mut std::task::Context<'_>| {
            std::task::Poll::Ready(dropped.as_mut().poll(context).is_pending())
        };
        assert!(block_on(std::future::poll_fn(once)));
    }
    assert_eq!(chat.messages(), before);
    let found = reply(&mut chat, "What news?", &options).unwrap();
    let mut anew = Chat::new(&model, template(), None).unwrap();
    anew.set_messages(before);
    assert_eq!(found.ids, reply(&mut anew, "What news?", &options).unwrap().ids);
}

#[test]
fn a_model_that_does_not_write_is_refused() {
    let (_, template) = load("refused");
    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned))).unwrap();
    let fill = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/ui-fill");
    let model = block_on(Model::load(&gpu, &Source::folder(fill), LoadOptions::new())).unwrap();
    assert!(Chat::new(&model, template(), None).is_err());
}
