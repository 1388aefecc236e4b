//! A text ends at a stop string wherever tokens are cut, shows nothing of it, and is what its tokens showed.

use std::ops::ControlFlow;

use headwise::{Cancel, Chat, Error, Generate, Model, StopReason, Token, block_on};

use super::{load as prose, reply, text::load};

/// Behind `a`, be it a word or a part of one: c d ✔ e ▁b !, the check mark in three tokens.
const NEXT: [(usize, usize); 10] = [
    (259, 261),
    (266, 261),
    (261, 262),
    (262, 229),
    (229, 159),
    (159, 151),
    (151, 264),
    (264, 260),
    (260, 268),
    (268, 2),
];
const IDS: [u32; 9] = [261, 262, 229, 159, 151, 264, 260, 268, 2];
const TEXT: &str = "cd\u{2714}e b!";
const TOKENIZER: &str = include_str!("../../../../tests/fixtures/tokenizers/byte_fallback.json");
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";

/// Stop strings, the most new tokens, and what they make of the text: how many ids, why it ends.
type Case = (&'static [&'static str], usize, &'static str, usize, StopReason);

/// Bytes are a character when the token after them has come.
const CASES: [Case; 13] = [
    (&[], 64, TEXT, 9, StopReason::StopToken),
    (&["no", "cx"], 64, TEXT, 9, StopReason::StopToken),
    // Across tokens, within a token, at a token's border, first and last.
    (&["e b"], 64, "cd\u{2714}", 7, StopReason::StopString),
    (&[" "], 64, "cd\u{2714}e", 7, StopReason::StopString),
    (&["b"], 64, "cd\u{2714}e ", 7, StopReason::StopString),
    (&["cd"], 64, "", 2, StopReason::StopString),
    (&["!"], 64, "cd\u{2714}e b", 8, StopReason::StopString),
    // Characters of several tokens.
    (&["\u{2714}"], 64, "cd", 6, StopReason::StopString),
    (&["d\u{2714}e"], 64, "c", 6, StopReason::StopString),
    // The one that is complete first.
    (&["e b!", " b", "!"], 64, "cd\u{2714}e", 7, StopReason::StopString),
    // What was held back is text after all.
    (&["! and"], 64, TEXT, 9, StopReason::StopToken),
    (&["d\u{2714}"], 2, "cd", 2, StopReason::MaxNew),
    // What comes out at the end only.
    (&["\u{2714}"], 5, "cd", 5, StopReason::StopString),
];

/// What tokens show, one after the other; none shows a part of a stop string.
fn shown(tokens: &[Token], (stops, _, text, _, reason): Case) -> String {
    let shown: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.starts_with(&shown), "{stops:?}: {shown}");
    let lasts: Vec<bool> = tokens.iter().map(|token| token.last).collect();
    assert_eq!(lasts.iter().position(|&last| last), Some(tokens.len() - 1), "{stops:?} {reason:?}");
    shown
}

fn options((stops, most, ..): Case) -> Generate {
    Generate::new().greedy().max_new(most).stop(stops.iter().copied())
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let (model, _) = load("stops", TOKENIZER, 269, &NEXT, TEMPLATE);
    for case in CASES {
        let (stops, _, text, count, reason) = case;
        let mut tokens = Vec::new();
        let generation = block_on(model.generate("a", &options(case), |token| {
            tokens.push(token.clone());
            ControlFlow::Continue(())
        }));
        let generation = generation.unwrap();
        assert_eq!(generation.text, [text], "{stops:?}");
        assert_eq!((&generation.ids[0][..], generation.stopped[0]), (&IDS[..count], reason), "{stops:?}");
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        assert_eq!((shown(&tokens, case).as_str(), &ids), (text, &generation.ids[0]));

        // As a stream, from ids, and with routes, which come a step later.
        let (mut tokens, mut stream) = (Vec::new(), model.stream("a", &options(case)));
        block_on(async {
            while let Some(token) = stream.next().await {
                tokens.push(token.unwrap());
            }
        });
        assert_eq!(shown(&tokens, case), text);
        assert_eq!(stream.generation().map(|all| &all.text), Some(&generation.text));
        let mut routed = Vec::new();
        let with_routes = block_on(model.generate_ids(&[&[259]], &options(case).with_routes(), |token| {
            routed.extend((!token.prompt).then(|| token.clone()));
            ControlFlow::Continue(())
        }));
        let with_routes = with_routes.unwrap();
        assert_eq!((with_routes.text, with_routes.ids), (generation.text, generation.ids), "{stops:?}");
        assert_eq!(shown(&routed, case), text);
    }
}

#[test]
fn each_text_of_a_batch_has_its_own_end() {
    let (model, _) = load("stops-batch", TOKENIZER, 269, &NEXT, TEMPLATE);
    let prompts: [&[u32]; 3] = [&[259], &[262], &[259, 264]];
    let mut shown = vec![String::new(); 3];
    let options = Generate::new().greedy().stop(["d", "e"]);
    let generation = block_on(model.generate_ids(&prompts, &options, |token| {
        shown[token.sequence] += &token.text;
        ControlFlow::Continue(())
    }));
    let generation = generation.unwrap();
    assert_eq!(generation.text, ["c", "\u{2714}", " b!"]);
    assert_eq!(generation.text, shown);
    assert_eq!(generation.stopped, [StopReason::StopString, StopReason::StopString, StopReason::StopToken]);
    assert_eq!(generation.ids, [&IDS[..2], &IDS[2..6], &IDS[6..]]);
}

#[test]
fn an_answer_ends_before_a_stop_string_and_the_conversation_goes_on() {
    let (model, template) = load("stops-chat", TOKENIZER, 269, &NEXT, TEMPLATE);
    let mut chat = Chat::new(&model, template, None).unwrap();
    for case in CASES {
        let (stops, _, text, count, reason) = case;
        chat.set_messages([]);
        for _ in 0..2 {
            let mut tokens = Vec::new();
            let answer = block_on(chat.reply("a", &options(case), |token| {
                tokens.push(token.clone());
                ControlFlow::Continue(())
            }));
            let answer = answer.unwrap();
            assert_eq!((answer.text.as_str(), answer.stopped), (text, reason), "{stops:?}");
            assert_eq!((&answer.ids[..], shown(&tokens, case).as_str()), (&IDS[..count], text), "{stops:?}");
        }
        let said: Vec<&str> = chat.messages().iter().map(|message| message.content.as_str()).collect();
        assert_eq!(said, ["a", text, "a", text]);
    }
}

#[test]
fn who_ends_a_text_gets_what_was_held_back() {
    let (model, _) = load("stops-ended", TOKENIZER, 269, &NEXT, TEMPLATE);
    for (most, text) in [(1, "c"), (2, "cd"), (3, "cd\u{fffd}"), (6, "cd\u{2714}e")] {
        let mut tokens = 0;
        let cancel = Cancel::new();
        let options = Generate::new().greedy().stop(["d\u{2714}ex"]).cancel(&cancel);
        let generation = block_on(model.generate("a", &options, |_| {
            tokens += 1;
            if tokens == most {
                cancel.cancel();
            }
            ControlFlow::Continue(())
        }));
        let generation = generation.unwrap();
        assert_eq!((&generation.text[0][..], generation.stopped[0]), (text, StopReason::Cancelled));
    }
}

/// Of any text that the model writes, in tokens of bytes: ended anywhere, by what stands there.
#[test]
fn what_a_model_writes_is_cut_where_it_says() {
    let (model, _) = prose("stops-prose");
    let prompt = "The king shall";
    let ids = model.encode(prompt).unwrap();
    let write = |model: &Model, options: &Generate| {
        let mut shown = String::new();
        let run = model.generate(prompt, options, |token| {
            shown += &token.text;
            ControlFlow::Continue(())
        });
        let generation = block_on(run).unwrap();
        assert_eq!(generation.text, [shown]);
        generation
    };
    for seed in 0..3 {
        let options = Generate::new().temperature(1.5).top_k(None).top_p(1.0).seed(seed).max_new(24);
        let whole = write(&model, &options);
        let all = [&ids[..], &whole.ids[0]].concat();
        assert_eq!(format!("{prompt}{}", whole.text[0]), model.tokenizer().unwrap().decode(&all).unwrap());
        let text = &whole.text[0];
        for (start, _) in text.char_indices().step_by(9) {
            let stop: String = text[start..].chars().take(7).collect();
            let cut = write(&model, &options.clone().stop([stop.clone()]));
            assert_eq!(cut.text, [&text[..text.find(&stop).unwrap()]], "{stop}");
            assert!(whole.ids[0].starts_with(&cut.ids[0]));
            assert_eq!(cut.stopped, [StopReason::StopString]);
        }
    }
}

#[test]
fn a_stop_string_of_nothing_is_refused() {
    let (model, template) = load("stops-empty", TOKENIZER, 269, &NEXT, TEMPLATE);
    let options = Generate::new().stop(["a", ""]);
    let refused = |error: Error| {
        assert_eq!(error.to_string(), "stop: found an empty text, expected texts of at least one character");
    };
    refused(block_on(model.generate("a", &options, |_| ControlFlow::Continue(()))).unwrap_err());
    refused(reply(&mut Chat::new(&model, template, None).unwrap(), "a", &options).unwrap_err());
}
