//! A `tokenizer.json` is as hostile as any file: whatever it says, it is a tokenizer that works or an error that names the
//! place, soon. The library that runs it must not even be given what makes it panic: in a browser that is the end.

use std::{
    panic::catch_unwind,
    path::Path,
    time::{Duration, Instant},
};

use headwise::fuzzing::check_tokenizer;
use serde_json::{Value, json};

use super::FIXTURES;

/// Enough for a slow machine with much else to do.
const TIME: Duration = Duration::from_secs(20);

/// What came of a file: nothing, or a message. Panics, long waits and panics that were only caught are failures.
#[track_caller]
fn outcome(json: &[u8], what: &str) -> Option<String> {
    let started = Instant::now();
    let result = catch_unwind(|| check_tokenizer(json)).unwrap_or_else(|_| panic!("{what}: a panic"));
    assert!(started.elapsed() < TIME, "{what}: {:?}", started.elapsed());
    let message = result.err()?.to_string();
    assert!(message.len() < 2000 && !message.contains(char::is_control), "{what}: {message:?}");
    assert!(!message.contains("breaks the tokenizers library"), "{what}: {message}");
    assert!(!message.contains("given up"), "{what}: {message}");
    Some(message)
}

#[track_caller]
fn refused(json: &Value, parts: &[&str]) {
    let text = json.to_string();
    let message =
        outcome(text.as_bytes(), &parts.join(" … ")).unwrap_or_else(|| panic!("taken: {text:.300}"));
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

#[track_caller]
fn taken(json: &Value) {
    let message = outcome(json.to_string().as_bytes(), "good");
    assert_eq!(message, None);
}

// -- good ones to be damaged ---------------------------------------------------------------------------

fn fixture(name: &str) -> Value {
    let path = Path::new(FIXTURES).join("tokenizers").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": false,
        "normalized": content.contains('m'), "special": true})
}

/// As BERT's.
fn word_piece() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "[UNK]"), added(1, "[CLS]"), added(2, "[SEP]"), added(3, "[mask]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[mask]": 3, "a": 4, "##a": 5, "##b": 6, "hi": 7, "ok": 8, ".": 9}},
    })
}

/// As T5's, with a table that makes `ﬁ` of two characters.
fn unigram() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64(&table())},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["▁", -2.0], ["▁a", -2.5], ["a", -3.0], ["aa", -3.5], ["b", -4.0], ["hi", -4.5]]},
    })
}

/// As GPT-2's, cut short, with what newer ones add.
fn byte_level() -> Value {
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": [added(4, "<|end|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "Digits", "individual_digits": true},
            bytes]},
        "post_processor": {"type": "Sequence", "processors": [bytes,
            {"type": "RobertaProcessing", "sep": ["<|end|>", 4], "cls": ["<|end|>", 4], "trim_offsets": true, "add_prefix_space": true}]},
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|end|>": 4, "Ġa": 5, "?": 6, "aa": 7},
            "merges": ["a b", "Ġ a", "a a"]},
    })
}

/// Words, with what else there is.
fn word_level() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [added(1, "[mask]")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Prepend", "prepend": "-"}, {"type": "Replace", "pattern": {"String": "''"}, "content": "\""}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"},
            {"type": "UnicodeScripts"}, {"type": "CharDelimiterSplit", "delimiter": "x"}, {"type": "FixedLength", "length": 3}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": "</w>"},
            {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}]},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "[mask]": 1, "a": 2, "hi</w>": 3, "|": 4}},
    })
}

fn seeds() -> Vec<(&'static str, Value)> {
    vec![
        ("byte fallback", fixture("byte_fallback.json")),
        ("Vicuna's", fixture("vicuna.json")),
        ("WordPiece", word_piece()),
        ("Unigram", unigram()),
        ("byte level", byte_level()),
        ("WordLevel", word_level()),
    ]
}

/// A table in which the bytes of `ﬁ` lead to `fi`: one block of 256 units for each state.
fn table() -> Vec<u8> {
    let mut trie = vec![0u32; 4 * 256];
    trie[0] = 256 << 10;
    let states = [(256usize, 0xefu32), (512, 0xac), (768, 0x81)];
    for (state, byte) in states {
        let at = state ^ byte as usize;
        let next = if state == 768 { 768 } else { state + 256 };
        let leaf = u32::from(state == 768) << 8;
        trie[at] = byte | leaf | ((at ^ next) as u32) << 10;
    }
    trie[768] = 1 << 31;
    let bytes = trie.iter().flat_map(|unit| unit.to_le_bytes());
    (trie.len() as u32 * 4).to_le_bytes().into_iter().chain(bytes).chain(*b"fi\0").collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|group| {
        let bits = (0..3).fold(0u32, |bits, place| bits << 8 | u32::from(*group.get(place).unwrap_or(&0)));
        (0..4).map(move |digit| match digit <= group.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
            false => '=',
        })
    });
    digits.collect()
}

fn with(mut json: Value, pointer: &str, value: Value) -> Value {
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    json
}

#[test]
fn good_tokenizers_are_taken() {
    for (what, json) in seeds() {
        assert_eq!(outcome(json.to_string().as_bytes(), what), None, "{what}");
    }
    for folder in ["prose", "ui-en-de", "ui-fill"] {
        let path = format!("{}/models/{folder}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(outcome(&std::fs::read(path).unwrap(), folder), None);
    }
}

// -- what is known to go wrong ---------------------------------------------------------------------------

#[test]
fn tables_that_lie_are_refused() {
    let with_table = |table: &[u8]| {
        with(unigram(), "/normalizer/normalizers/0/precompiled_charsmap", json!(base64(table)))
    };
    let place = "normalizer.precompiled_charsmap";
    refused(&with_table(b""), &[place, "too short"]);
    for text in ["!", "AAA", "AAA=A", "=AAA", "A===", "AAB="] {
        let json = with(unigram(), "/normalizer/normalizers/0/precompiled_charsmap", json!(text));
        refused(&json, &[place]);
    }
    for value in [json!(null), json!(3), json!(["A"])] {
        refused(&with(unigram(), "/normalizer/normalizers/0/precompiled_charsmap", value), &[place]);
    }
    let table = table();
    let length = |length: u32| [&length.to_le_bytes()[..], &table[4..]].concat();
    for lie in [0, 1, 3, 5, 1 << 20, u32::MAX, u32::MAX - 3] {
        refused(&with_table(&length(lie)), &[place, "a trie of"]);
    }
    // Fewer units than the states lead to.
    refused(&with_table(&length(256)), &[place]);
    let unit = |index: usize, value: u32| {
        let mut table = table.clone();
        table[4 + 4 * index..][..4].copy_from_slice(&value.to_le_bytes());
        with_table(&table)
    };
    refused(&unit(0, 0xffff_fc00), &[place, "leads to unit"]);
    refused(&unit(256 ^ 0xef, 0x7fff_fcef), &[place, "leads to unit"]);
    refused(&unit(768, 1 << 31 | 4), &[place, "outside the texts"]);
    refused(&unit(768, u32::MAX), &[place, "outside the texts"]);
    let mut split = table.clone();
    let end = split.len() - 3;
    split.splice(end.., "\u{e9}\0".bytes());
    split[4 + 4 * 768] = 1;
    refused(&with_table(&split), &[place, "outside the texts"]);
    *split.last_mut().unwrap() = 0xff;
    refused(&with_table(&split), &[place, "UTF-8"]);
    let long = [&table[..table.len() - 3], &[b'x'; 5000][..]].concat();
    refused(&with_table(&long), &[place, "a replacement of 5000 bytes"]);
}

#[test]
fn texts_that_would_grow_without_bound_are_refused() {
    let rule =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let normalizer = |rules: Vec<Value>| {
        with(word_piece(), "/normalizer", json!({"type": "Sequence", "normalizers": rules}))
    };
    let twice = || rule(json!({"String": "a"}), "aa");
    let grow = ["normalizer and pre_tokenizer", "grow"];
    refused(&normalizer(vec![twice(); 40]), &grow);
    refused(&normalizer(vec![json!({"type": "Sequence", "normalizers": vec![twice(); 20]}); 2]), &grow);
    refused(&normalizer(vec![rule(json!({"Regex": "a*"}), "aaa"); 12]), &grow);
    refused(&normalizer(vec![rule(json!({"Regex": "(?=a)"}), "a"); 30]), &grow);
    refused(&normalizer(vec![rule(json!({"String": ""}), &"x".repeat(500)); 2]), &grow);
    refused(&normalizer(vec![rule(json!({"String": "a"}), &"a".repeat(1000)); 2]), &grow);
    refused(
        &normalizer(vec![rule(json!({"String": "a"}), &"a".repeat(5000))]),
        &["normalizer.content", "5000 bytes"],
    );
    refused(
        &normalizer(vec![json!({"type": "Prepend", "prepend": "x".repeat(5000)})]),
        &["normalizer.prepend"],
    );
    refused(&normalizer(vec![json!({"type": "Prepend", "prepend": "x".repeat(100)}); 40]), &grow);
    refused(&normalizer(vec![json!({"type": "ByteLevel"}); 40]), &grow);
    let bytes = byte_level()["decoder"].clone();
    let pretokenizers = json!({"type": "Sequence", "pretokenizers": vec![bytes; 40]});
    refused(&with(byte_level(), "/pre_tokenizer", pretokenizers), &grow);
    let decoders = json!({"type": "Sequence", "decoders": vec![twice(); 40]});
    refused(&with(word_piece(), "/decoder", decoders), &["decoder", "grow"]);
    // Tables are rules, too; one that does no more than Unicode's forms, once, is not counted.
    let long = |bytes: usize| [&table()[..table().len() - 3], "x".repeat(bytes).as_bytes(), b"\0"].concat();
    let tables = |bytes: usize, count: usize| {
        let one = json!({"type": "Precompiled", "precompiled_charsmap": base64(&long(bytes))});
        with(unigram(), "/normalizer", json!({"type": "Sequence", "normalizers": vec![one; count]}))
    };
    // Of 3 bytes 33 or 99, and four for each byte by `Metaspace`.
    taken(&tables(33, 3));
    refused(&tables(33, 4), &[grow[0], "grow 5324 times as long"]);
    refused(&tables(99, 2), &[grow[0], "grow 4356 times as long"]);
    // What may be is what counts: these rules find nothing in the text.
    let much = vec![rule(json!({"String": "q"}), &"b".repeat(1000)), rule(json!({"String": "b"}), "bbbb")];
    refused(
        &normalizer(much),
        &[
            "text: found 2.0 KiB, expected at most 1.0 KiB for a tokenizer that may make a text 4000 times as long",
        ],
    );
    // Many rules that have nothing to do with each other are fine.
    let digits = (0..10).map(|digit| rule(json!({"String": digit.to_string()}), "\u{2581}\u{2581}"));
    taken(&normalizer(digits.collect()));
    taken(&normalizer(vec![rule(json!({"Regex": r"\s+"}), " "); 30]));
}

#[test]
fn contradictions_are_refused_by_name() {
    let fixed = |length: Value| with(word_level(), "/pre_tokenizer/pretokenizers/4/length", length);
    refused(&fixed(json!(0)), &["pre_tokenizer.length: found 0, expected at least 1"]);
    taken(&fixed(json!(u64::MAX)));
    let word = |most: Value| with(word_piece(), "/model/max_input_chars_per_word", most);
    refused(
        &word(json!(u64::MAX)),
        &["max_input_chars_per_word: found 18446744073709551615, expected at most 1000"],
    );
    refused(&word(json!(-1)), &["max_input_chars_per_word"]);

    let prefix = |prefix: &str| with(byte_level(), "/model/continuing_subword_prefix", json!(prefix));
    refused(
        &prefix("long prefix"),
        &["model.merges", "\"b\" in merge 0", "continuing_subword_prefix \"long prefix\""],
    );
    refused(&prefix("b"), &["model.merges", "in merge 1"]);
    refused(&prefix("é"), &["model.merges"]);
    let merges = |merges: Value| with(byte_level(), "/model/merges", merges);
    refused(&merges(json!(["a zz"])), &["model.merges: found \"zz\" in merge 0"]);
    refused(
        &merges(json!([["a", "b"], ["aa", "aa"]])),
        &["model.merges: found \"aaaa\", the token that is made, in merge 1"],
    );
    refused(&merges(json!(["a"])), &["model.merges"]);
    refused(&merges(json!(["a b b"])), &["model.merges"]);
    refused(&merges(json!([["a"]])), &["model.merges"]);
    refused(&merges(json!([["a", "b", "b"]])), &["model.merges"]);
    taken(&merges(json!(["#version: 0.2", "a b"])));

    let vocab = |vocab: Value| with(word_piece(), "/model/vocab", vocab);
    refused(
        &vocab(json!({"[UNK]": 0, "a": 7, "b\u{1b}": 7})),
        &["model.vocab: found \"a\" and \"b\\u{1b}\" for the id 7"],
    );
    refused(&vocab(json!({"[UNK]": -1})), &["tokenizer: "]);
    refused(&vocab(json!({"[UNK]": 1u64 << 32})), &["tokenizer: "]);
    refused(&vocab(json!({})), &["tokenizer: "]);
    // Ids may have holes.
    taken(&vocab(json!({"[UNK]": 4_000_000_000u32, "[CLS]": 5, "[SEP]": 6})));
    refused(&vocab(json!({"[UNK]": 0, "a".repeat(100_000): 1})), &["model.vocab", "100000 bytes"]);

    refused(
        &with(unigram(), "/model/unk_id", json!(8)),
        &["model.unk_id: found 8, expected one of the 8 tokens"],
    );
    refused(&with(unigram(), "/model/unk_id", json!(u64::MAX)), &["unk_id"]);
    refused(&with(unigram(), "/model/unk_id", json!(null)), &["unk_id"]);
    refused(
        &with(unigram(), "/model/vocab", json!([])),
        &["model.unk_id: found 0, expected one of the 0 tokens"],
    );
    refused(&with(unigram(), "/model/vocab/3/1", json!(null)), &["tokenizer: "]);
    refused(
        &with(unigram(), "/model/vocab/3/0", json!("a".repeat(100_000))),
        &["model.vocab", "100000 bytes"],
    );
    let text = unigram().to_string().replace("-2.5", "1e999");
    assert!(outcome(text.as_bytes(), "infinite score").is_some());

    let single = |pieces: Value| with(word_piece(), "/post_processor/single", pieces);
    let (text, sep) = (
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        json!({"SpecialToken": {"id": "[SEP]", "type_id": 0}}),
    );
    let other = json!({"Sequence": {"id": "B", "type_id": 0}});
    refused(&single(json!([text, other])), &["post_processor.single: found the sequence \"B\""]);
    refused(
        &single(json!([text, {"SpecialToken": {"id": "\u{1b}[2J", "type_id": 0}}])),
        &["post_processor.special_tokens: found no \"\\u{1b}[2J\""],
    );
    refused(&single(json!(vec![text.clone(); 40])), &["post_processor.single: found the text 40 times"]);
    refused(&single(json!(vec![sep; 10_000])), &["post_processor.single: found 10000 pieces"]);
    refused(
        &with(word_piece(), "/post_processor/special_tokens/[SEP]/ids", json!(vec![2; 100_000])),
        &["post_processor.special_tokens"],
    );

    // A message has no control characters to obey.
    refused(&with(word_piece(), "/model/type", json!("\u{1b}[31m\r\n")), &["tokenizer: "]);
    refused(&with(word_piece(), "/version", json!("\u{1b}[31m\r\n")), &["\\u{1b}[31m\\r\\n"]);
}

#[test]
fn what_is_too_deep_or_too_large_is_refused() {
    for field in ["/normalizer", "/pre_tokenizer", "/post_processor", "/decoder", "/model"] {
        let (list, leaf) = match field {
            "/normalizer" => ("normalizers", json!({"type": "NFC"})),
            "/pre_tokenizer" => ("pretokenizers", json!({"type": "Whitespace"})),
            "/post_processor" => ("processors", word_piece()["post_processor"].clone()),
            _ => ("decoders", json!({"type": "Fuse"})),
        };
        let nest = |depth: usize| {
            (0..depth).fold(leaf.clone(), |inner, _| {
                let mut outer = json!({"type": "Sequence"});
                outer[list] = json!([inner]);
                outer
            })
        };
        refused(&with(word_piece(), field, nest(40)), &[]);
        refused(&with(word_piece(), field, json!(vec![1; 100_000])), &[]);
        if field != "/model" {
            taken(&with(word_piece(), field, nest(3)));
            let mut many = json!({"type": "Sequence"});
            many[list] = json!(vec![leaf.clone(); 5000]);
            refused(&with(word_piece(), field, many), &["5000 parts, expected at most 512"]);
        }
        for depth in [100, 100_000] {
            let text = word_piece().to_string();
            let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let key = format!("\"{}\":", &field[1..]);
            let text = text.replacen(&key, &format!("{key}{deep},\"x\":"), 1);
            assert!(outcome(text.as_bytes(), "deep").is_some());
        }
    }
}

#[test]
fn regular_expressions_cannot_run_on() {
    let patterns = [
        "(a*)*b".to_owned(),
        "(a|a)*b".to_owned(),
        r"(?=(a+))\1b|(a*)*c".to_owned(),
        r"(?:(a+)+)+(?=x)".to_owned(),
        r"(a+)+\1\1x".to_owned(),
        "(".repeat(10_000),
        format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("{}a{}", "(?=".repeat(5_000), ")".repeat(5_000)),
        "a{1000}{1000}{1000}".to_owned(),
        "(?:(?:a{0,1000}){0,1000}){0,1000}".to_owned(),
        r"(?:(?=a)){0,4000000000}".to_owned(),
        r"(?:(?=a)a{1000}){1000}(?!b)".to_owned(),
        r"\p{L}{1000}|".repeat(200),
        r"\p{L}".repeat(6_000),
        "a".repeat(1 << 20),
        r"\".to_owned(),
        "[".to_owned(),
        r"(?<=a*)b".to_owned(),
        r"\K".to_owned(),
        r"(?R)".to_owned(),
        r"(?P<a>(?&a))".to_owned(),
        String::new(),
    ];
    for pattern in &patterns {
        let shown = pattern.get(..60).unwrap_or(pattern);
        let split =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true});
        outcome(with(word_piece(), "/pre_tokenizer", split).to_string().as_bytes(), shown);
        let replace = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "a"});
        for place in ["/normalizer", "/decoder"] {
            outcome(with(word_piece(), place, replace.clone()).to_string().as_bytes(), shown);
        }
    }
}

#[test]
fn added_tokens_say_what_they_like() {
    let tokens = |tokens: Value| with(word_level(), "/added_tokens", tokens);
    for id in [json!(-1), json!(1u64 << 32), json!("1"), json!(0.5)] {
        let mut token = added(1, "[mask]");
        token["id"] = id;
        refused(&tokens(json!([token])), &["tokenizer: "]);
    }
    // Ids come from the vocabulary; those that a file gives otherwise are not used.
    taken(&tokens(json!([added(u32::MAX, "[mask]"), added(u32::MAX, "new"), added(u32::MAX, "")])));
    refused(&tokens(json!([added(1, &"m".repeat(5000))])), &["added_tokens", "5000 bytes"]);
    // Normalized, these are the same, or nothing: the library would find nothing everywhere, within characters, too.
    let normalized = |content: &str| {
        let mut token = added(9, content);
        token["normalized"] = json!(true);
        tokens(json!([added(8, "m"), token]))
    };
    for content in [" ", "   ", "\n", "\u{1}"] {
        refused(
            &with(normalized(content), "/normalizer/normalizers/5/prepend", json!("")),
            &["added_tokens: found ", "makes nothing"],
        );
    }
    for content in ["m", "M", "\u{301}", "\u{1}"] {
        outcome(normalized(content).to_string().as_bytes(), content);
    }
}

// -- what is not known -----------------------------------------------------------------------------------

/// Places in a value, a few of each list and table.
fn places(value: &Value, place: &str, all: &mut Vec<String>) {
    all.push(place.to_owned());
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(values) => {
            values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    let most = if place.ends_with("vocab") || place.ends_with("merges") { 3 } else { 12 };
    for (key, value) in inner.into_iter().take(most) {
        places(value, &format!("{place}/{key}"), all);
    }
}

#[test]
fn every_value_and_part_of_every_tokenizer_may_be_another() {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(5),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(1e308),
        json!(""),
        json!("a"),
        json!("\u{1b}[31m\n"),
        json!("x".repeat(3000)),
        json!([]),
        json!({}),
        json!([null]),
        json!({"type": "Fuse"}),
        json!({"type": "Sequence"}),
        json!({"String": ""}),
        json!({"Regex": "(a*)*b"}),
    ];
    let (mut tried, mut refused) = (0, 0);
    let started = Instant::now();
    for (what, seed) in seeds() {
        let mut all = Vec::new();
        places(&seed, "", &mut all);
        for place in all {
            let mut damaged: Vec<Value> =
                values.iter().map(|value| with(seed.clone(), &place, value.clone())).collect();
            if let Some((parent, key)) = place.rsplit_once('/') {
                let mut without = seed.clone();
                match without.pointer_mut(parent) {
                    Some(Value::Object(fields)) => drop(fields.remove(key)),
                    Some(Value::Array(values)) => drop(values.remove(key.parse().unwrap())),
                    _ => {}
                }
                damaged.push(without);
            }
            for json in damaged {
                tried += 1;
                refused +=
                    usize::from(outcome(json.to_string().as_bytes(), &format!("{what}, {place}")).is_some());
            }
        }
        for (_, other) in seeds() {
            for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens"]
            {
                let mut json = seed.clone();
                json[part] = other[part].clone();
                tried += 1;
                refused += usize::from(
                    outcome(json.to_string().as_bytes(), &format!("{what}, another {part}")).is_some(),
                );
            }
        }
        let text = seed.to_string();
        for end in (0..text.len()).step_by(text.len() / 40 + 1) {
            tried += 1;
            refused += usize::from(outcome(&text.as_bytes()[..end], what).is_some());
        }
    }
    println!("{tried} tokenizers tried, {refused} refused, in {:?}", started.elapsed());
    assert!(tried > 5000 && refused > tried / 4);
}
