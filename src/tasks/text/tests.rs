use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

use super::*;

/// Names and bytes.
type Files = &'static [(&'static str, &'static [u8])];

/// The demo models that have tokenizers.
const MODELS: [(&str, Files); 3] = [
    ("models/prose", headwise_model_prose::FILES),
    ("models/ui-en-de", headwise_model_ui_en_de::FILES),
    ("models/ui-fill", headwise_model_ui_fill::FILES),
];

fn model(folder: &str) -> Tokenizer {
    let (_, files) = MODELS.into_iter().find(|(name, _)| *name == folder).unwrap();
    crate::block_on(Tokenizer::read(&Source::embedded("model", files))).unwrap().unwrap()
}

fn read(file: &str) -> Tokenizer {
    Tokenizer::parse(file.to_owned(), std::fs::read(file).unwrap()).unwrap()
}

fn parse(json: &Value) -> Tokenizer {
    Tokenizer::parse("tokenizer.json".to_owned(), json.to_string().into_bytes()).unwrap()
}

/// A tokenizer of whole tokens, whatever they are, with this decoder.
fn of_tokens(tokens: &[&str], decoder: Value) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    parse(&json!({
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"},
    }))
}

/// Tokens that decoders treat in ways of their own, alone or beside each other.
const TOKENS: [&str; 44] = [
    "<s>", "<0x0A>", "<0x41>", "<0xF0>", "<0x9F>", "<0xA6>", "<0x80>", "<0xE2>", "<0x9C>", "<0x94>",
    "<0xFF>", "<0xC3>", "<0x+A>", "<0xé>", "▁", "▁a", "▁▁", "b", "##c", "##", "#", " ", "  ", " x ", "Ġ",
    "Ġd", "Ã", "©", "ð", "Ł", "¦", "ģ", "é", "\u{fffd}", "漢", ".", "'", "n't", "do not", "e</w>", "</w>",
    "|", "<pad>", "b|.",
];

/// Decoders of every kind, in the orders that are published and in others.
fn decoders() -> Vec<Value> {
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let strip =
        |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let regex = json!({"type": "Replace", "pattern": {"Regex": "[a-c]+"}, "content": "<>"});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let pieces =
        |prefix: &str, cleanup: bool| json!({"type": "WordPiece", "prefix": prefix, "cleanup": cleanup});
    let bpe = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc = |cleanup: bool| json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": cleanup});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let all = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
    let space = replace("▁", " ");
    let mut decoders = vec![
        Value::Null,
        all(&[&space, &fallback, &fuse, &strip(1, 0)]),
        all(&[&space, &fallback, &fuse]),
        all(&[&fallback, &fuse, &space, &strip(2, 1)]),
        all(&[&fallback, &metaspace("always")]),
        all(&[&metaspace("first"), &fallback]),
        all(&[&fuse, &replace("b.", "-"), &strip(1, 0)]),
        all(&[&fuse, &fallback]),
        all(&[&fuse, &bytes]),
        all(&[&fuse, &pieces("##", true)]),
        all(&[&fuse, &pieces("##", false), &bpe]),
        all(&[&fuse, &metaspace("always"), &ctc(true)]),
        all(&[&bytes, &replace("é", "ee"), &strip(0, 2)]),
        all(&[&bytes, &metaspace("never")]),
        all(&[&all(&[&fallback, &regex]), &fuse, &regex]),
        all(&[&pieces("##", true), &fallback]),
        all(&[&ctc(true), &bpe, &fallback]),
        all(&[&replace("", "."), &strip(1, 0)]),
        all(&[]),
        regex,
    ];
    decoders.extend(["always", "first", "never"].map(metaspace));
    decoders
        .extend([("##", true), ("##", false), ("", true)].map(|(prefix, cleanup)| pieces(prefix, cleanup)));
    decoders.extend([bytes, fallback, fuse, bpe, ctc(true), ctc(false), space, strip(1, 0)]);
    decoders
}

/// A vocabulary as GPT-2 has it: the byte alphabet, some merges, a special token.
fn like_gpt2() -> Tokenizer {
    let (_, file) = headwise_model_prose::FILES.iter().find(|(name, _)| *name == "tokenizer.json").unwrap();
    let prose: Value = serde_json::from_slice(file).unwrap();
    let mut tokens: Vec<String> = prose["model"]["vocab"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|token| token.chars().count() == 1)
        .cloned()
        .collect();
    let mut merges = Vec::new();
    for (left, right) in
        [("Ã", "©"), ("ð", "Ł"), ("ðŁ", "¦"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "Ġ")]
    {
        merges.push(format!("{left} {right}"));
        tokens.push(format!("{left}{right}"));
    }
    tokens.push("<|endoftext|>".to_owned());
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    parse(&json!({
        "version": "1.0",
        "added_tokens": [{"id": tokens.len() - 1, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "vocab": vocab, "merges": merges},
    }))
}

/// Holds the stream to what the library makes of the same ids, all at once.
fn assert_streams(tokenizer: &Tokenizer, what: &str, cases: u32) {
    let vocab = tokenizer.inner.get_vocab_size(true) as u32;
    // Random ids hardly ever make a character, so runs of neighbours are among them.
    let near = (0..vocab, 0..8u32).prop_map(|(id, more)| (id..=id + more).collect::<Vec<u32>>());
    let beyond = prop_oneof![Just(u32::MAX), vocab..vocab + 3].prop_map(|id| vec![id]);
    let one = (0..vocab).prop_map(|id| vec![id]);
    let ids = prop::collection::vec(prop_oneof![6 => one, 2 => near, 1 => beyond], 0..24);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    )
    .run(&ids, |ids| {
        let ids = ids.concat();
        // Some of the library's own decoders panic: on no tokens at all, on a text that is stripped from both ends.
        let whole = catch_unwind(AssertUnwindSafe(|| tokenizer.inner.decode(&ids, true).unwrap()));
        let whole = whole.or_else(|_| tokenizer.decode(&ids)).unwrap();
        let mut stream = tokenizer.stream();
        let mut joined = String::new();
        for &id in &ids {
            joined += &stream.push(id);
            prop_assert!(whole.starts_with(&joined), "{whole:?} does not start with {joined:?}");
        }
        joined += &stream.finish();
        prop_assert_eq!(&joined, &whole);
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), whole);
        // A stream that ended begins anew.
        let again: String = ids.iter().map(|&id| stream.push(id)).collect();
        prop_assert_eq!(again + &stream.finish(), joined);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn a_stream_is_the_text_of_its_ids_for_published_tokenizers() {
    for (folder, _) in MODELS {
        assert_streams(&model(folder), folder, 300);
    }
    for file in ["tests/fixtures/tokenizers/byte_fallback.json", "tests/fixtures/tokenizers/vicuna.json"] {
        assert_streams(&read(file), file, 300);
    }
    assert_streams(&like_gpt2(), "like GPT-2", 300);
}

#[test]
fn a_stream_is_the_text_of_its_ids_for_every_decoder() {
    for decoder in decoders() {
        assert_streams(&of_tokens(&TOKENS, decoder.clone()), &decoder.to_string(), 200);
    }
}

/// The whole texts are what `tokenizers` 0.23.3 decodes in Python.
#[test]
fn bytes_that_are_no_characters_are_shown_as_such() {
    let tokenizer = read("tests/fixtures/tokenizers/byte_fallback.json");
    for (ids, pieces) in [
        (&[259, 13, 243, 261, 265, 2][..], &["a", "", "", "\u{fffd}\u{fffd}c", " end", ""][..]),
        (&[259, 229, 159, 151], &["a", "", "", "\u{2714}"]),
        (&[229, 159, 151, 243, 260], &["", "", "", "", "\u{fffd}\u{fffd}\u{fffd}\u{fffd} b"]),
        (&[13, 13], &["", "\n\n"]),
        (&[9999, 1], &["", ""]),
    ] {
        assert_eq!(tokenizer.texts(ids), pieces, "{ids:?}");
    }
}

#[test]
fn a_text_that_goes_on_keeps_its_space_and_gives_nothing_twice() {
    let words = read("tests/fixtures/tokenizers/vicuna.json");
    let after = |tokenizer: &Tokenizer, before: &[u32], ids: &[u32]| {
        let mut stream = tokenizer.stream();
        stream.go_on_from(before);
        let text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text + &stream.finish()
    };
    assert_eq!(after(&words, &[], &[270]), "ok");
    assert_eq!(after(&words, &[1, 269], &[270, 2]), " ok");
    // A byte that the text before ended with is that text's affair.
    assert_eq!(after(&words, &[269, 243], &[162, 270]), "\u{fffd} ok");
    let gpt2 = like_gpt2();
    let ids = gpt2.encode("the \u{1F980}").unwrap();
    let (before, new) = ids.split_at(ids.len() - 1);
    assert_eq!(after(&gpt2, before, new), "\u{fffd}");
    let bpe = of_tokens(&TOKENS, json!({"type": "BPEDecoder", "suffix": "</w>"}));
    assert_eq!(after(&bpe, &[39], &[17, 39]), "be");
}

/// Each id costs the same, however many came before: quadratic work would not end.
#[test]
fn long_streams_are_no_more_work_per_id() {
    let tokenizer = read("tests/fixtures/tokenizers/byte_fallback.json");
    let prose = model("models/prose");
    let ids: Vec<u32> = (0..400_000).map(|index| 3 + index % 256).collect();
    assert_eq!(tokenizer.decode(&ids).unwrap().chars().count(), 400_000);
    assert!(!prose.decode(&ids).unwrap().is_empty());
}

#[test]
fn merges_are_never_dropped() {
    let mut json: Value =
        serde_json::from_slice(&std::fs::read("tests/fixtures/tokenizers/vicuna.json").unwrap()).unwrap();
    json["model"]["dropout"] = json!(1.0);
    assert_eq!(parse(&json).encode("hi ok").unwrap(), [1, 269, 270]);
}

#[test]
fn what_is_much_too_long_is_refused_before_it_is_cut_into_tokens() {
    let tokenizer = model("models/prose");
    let words = "It is a truth. ".repeat(1 << 20);
    let started = std::time::Instant::now();
    let Err(Error::Argument { name, found, expected }) = tokenizer.encode_for(&words, 512) else {
        panic!("taken")
    };
    assert_eq!((name, expected.as_str()), ("prompt", "at most the model's 512"));
    assert!(found.ends_with(" tokens in the first 16.0 KiB of 15.0 MiB"), "{found}");
    assert!(started.elapsed().as_secs() < 5);
    // Spaces that rules drop, and words that no token has, are many bytes and few tokens.
    let json = json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"},
    });
    let text = format!("a {} {} a", " ".repeat(200_000), "x".repeat(200_000));
    assert_eq!(parse(&json).encode_for(&text, 8).unwrap(), [0, 1, 0]);
}

#[test]
fn pieces_are_the_text() {
    for (folder, text) in [
        ("models/ui-fill", "  Größe\u{301} of [MASK]  [MASK], naïve 🦀🦀\n "),
        ("models/ui-fill", "[MASK]"),
        ("models/ui-en-de", " 漢字 and “{0}”…"),
        ("models/ui-en-de", ""),
        ("models/prose", "It is a truth\u{1F468}\u{200D}\u{1F469} "),
    ] {
        let tokenizer = model(folder);
        let pieces = tokenizer.pieces(text).unwrap();
        let ids: Vec<u32> = pieces.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, tokenizer.encode(text).unwrap());
        assert_eq!(pieces.iter().map(|(_, piece)| piece.as_str()).collect::<String>(), text, "{pieces:?}");
    }
}

/// Whatever they do to it: a prompt is refused before the work if they might make far too much of it.
#[test]
fn what_may_become_far_too_long_is_refused_before_the_work() {
    let rule = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let tokenizer = |normalizers: Vec<Value>, pre_tokenizer: Value| {
        parse(&json!({
            "version": "1.0",
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": pre_tokenizer,
            "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"},
        }))
    };
    let thousand = "b".repeat(1000);
    for (rules, length, found) in [
        (
            vec![rule("", &thousand)],
            30_000,
            "29.3 KiB, expected at most 4.1 KiB for a tokenizer that may make a text 1001 times as long",
        ),
        (
            vec![rule("a", &thousand), rule("b", "bbbb")],
            16_000,
            "15.6 KiB, expected at most 1.0 KiB for a tokenizer that may make a text 4000 times as long",
        ),
        (
            vec![rule("a", &"b".repeat(17))],
            1 << 20,
            "1.0 MiB, expected at most 240.9 KiB for a tokenizer that may make a text 17 times as long",
        ),
    ] {
        let hostile = tokenizer(rules, Value::Null);
        let (started, text) = (std::time::Instant::now(), "a".repeat(length));
        for (name, result) in [("prompt", hostile.encode_for(&text, 128)), ("text", hostile.encode(&text))] {
            assert_eq!(result.unwrap_err().to_string(), format!("{name}: found {found}"));
        }
        let pieces = hostile.pieces(&text).unwrap_err().to_string();
        assert_eq!(pieces, format!("text: found {found}"));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(hostile.encode("aaa").unwrap(), [0]);
    }
    // As published ones have it.
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let llama = vec![json!({"type": "Prepend", "prepend": "▁"}), rule(" ", "▁")];
    let (nfkc, spaces) =
        (json!({"type": "NFKC"}), json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}));
    let long = "word ".repeat((16 << 20) / 5);
    for (rules, pre_tokenizer) in [(vec![], bytes), (vec![nfkc, spaces], metaspace), (llama, Value::Null)] {
        tokenizer(rules, pre_tokenizer).refuse_growth("text", &long).unwrap();
    }
}
