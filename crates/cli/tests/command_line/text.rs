//! What is printed is the text of the ids, whatever the ids.

use std::path::PathBuf;

use super::{successors, support::*};

const TOKENIZER: &str = include_str!("../../../../tests/fixtures/tokenizers/byte_fallback.json");

/// A model that writes these tokens, the first of which is the prompt `a`.
fn model(test: &str, tokens: &[usize]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("text-{test}"));
    let next: Vec<(usize, usize)> = tokens.windows(2).map(|pair| (pair[0], pair[1])).collect();
    successors::write(&folder, TOKENIZER, 269, &next);
    folder
}

/// Right is what `transformers` 5.24 decodes of all ids.
#[test]
fn bytes_that_are_no_characters_are_written_to_the_end() {
    let line_break = model("line-break", &[259, 13, 243, 261, 265, 2]);
    let check_mark = model("check-mark", &[259, 229, 159, 151, 243, 260, 261, 265, 2]);
    for (folder, text) in [
        (&line_break, "a\u{fffd}\u{fffd}c end\n"),
        (&check_mark, "a\u{fffd}\u{fffd}\u{fffd}\u{fffd} bc end\n"),
    ] {
        let args = ["generate", "--model", folder.to_str().unwrap(), "--greedy", "a"];
        assert_eq!(stdout(&args), text);
        let report = json(&[&args[..], &["--json"]].concat());
        assert_eq!(report["text"], text.trim_end()[1..]);
        // Each token's part is shown with its heads, too, and together they are the text.
        let shown = stdout(&[&args[..2], &args[2..], &["--print-ids"]].concat());
        assert!(shown.ends_with("261,265,2\n"), "{shown}");
    }
    // A text that ends within a character ends with what there is of it.
    let args = ["generate", "--model", check_mark.to_str().unwrap(), "--greedy", "a", "--max-new"];
    for (most, text) in
        [("1", "a\u{fffd}\n"), ("2", "a\u{fffd}\u{fffd}\n"), ("3", "a\u{2714}\n"), ("0", "a\n")]
    {
        assert_eq!(stdout(&[&args[..], &[most]].concat()), text, "{most}");
    }
    // Ids have no text but what they are decoded to.
    let ids = [
        "generate",
        "--model",
        check_mark.to_str().unwrap(),
        "--greedy",
        "--ids",
        "259,229",
        "--max-new",
        "2",
    ];
    assert_eq!(stdout(&ids), "a\u{2714}\n");
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let (prompt, greedy) = &prompts()[0];
    let args = ["generate", prompt, "--greedy", "--max-new", "48", "--stop"];
    let stop: String = greedy.chars().skip(20).take(9).collect();
    let cut = &greedy[..greedy.find(&stop).unwrap()];
    assert_eq!(stdout(&[&args[..], &[&stop]].concat()), format!("{prompt}{cut}\n"));
    let report = json(&[&args[..], &["nowhere", "--stop", &stop, "--json"]].concat());
    assert_eq!((&report["text"], &report["stop_reason"]), (&cut.into(), &"stop-string".into()));
    // From ids and in tokens of bytes; what was held back is printed at the end.
    let folder = model("stops", &[259, 229, 159, 151, 243, 260, 261, 265, 2]);
    let args = ["generate", "--model", folder.to_str().unwrap(), "--greedy"];
    for (stop, text) in [
        ("bc e", "a\u{fffd}\u{fffd}\u{fffd}\u{fffd} \n"),
        ("endless", "a\u{fffd}\u{fffd}\u{fffd}\u{fffd} bc end\n"),
    ] {
        assert_eq!(stdout(&[&args[..], &["a", "--stop", stop]].concat()), text);
        assert_eq!(stdout(&[&args[..], &["--ids", "259", "--stop", stop]].concat()), text);
    }
    fails(&["generate", "a", "--stop", ""], &["stop: found an empty text"]);
    fails(&["generate", "--model", TINY, "--ids", "1", "--stop", "a"], &["tokenizer.json"]);
}

#[test]
fn tokens_are_made_likelier_or_less_and_say_how_likely_they_were() {
    let args = ["generate", "The king shall", "--greedy", "--json"];
    let run = |more: &[&str]| json(&[&args[..], more].concat());
    let ids = |report: &serde_json::Value| -> Vec<u64> {
        report["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let plain = run(&["--max-new", "32", "--logprobs", "2"]);
    let (first, top) = (&plain["tokens"][0], &plain["tokens"][0]["top"]);
    assert_eq!(
        (&first["id"], &first["logprob"], &first["text"]),
        (&top[0]["id"], &top[0]["logprob"], &top[0]["text"])
    );
    assert!(top[1]["logprob"].as_f64() < top[0]["logprob"].as_f64() && first["logprob"].as_f64() < Some(0.0));
    assert!(
        plain["tokens"].as_array().unwrap().iter().all(|token| token["top"].as_array().unwrap().len() == 2)
    );

    let ban = format!("{}=-inf", top[0]["id"]);
    assert_eq!(run(&["--max-new", "1", "--logit-bias", &ban])["ids"][0], top[1]["id"]);
    let both = ["--max-new", "3", "--logit-bias", &ban, "--logit-bias", "7=1e9"];
    assert_eq!(ids(&run(&both)), [7, 7, 7]);
    for penalty in ["--presence-penalty", "--frequency-penalty"] {
        let mut found = ids(&run(&["--max-new", "32", penalty, "1e9"]));
        found.sort_unstable();
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
    }
    assert_ne!(run(&["--max-new", "32", "--repetition-penalty", "1.3"])["ids"], plain["ids"]);

    for (option, value, message) in [
        ("--repetition-penalty", "0", "repetition penalty: found 0"),
        ("--logprobs", "17", "logprobs: found 17, expected at most 16"),
        ("--logit-bias", "99999=1", "logit bias: found one for token 99999"),
    ] {
        fails(&[&args[..], &[option, value]].concat(), &[message]);
    }
}

#[test]
fn a_prompt_that_is_much_too_long_is_refused_by_its_bytes() {
    let folder = model("long", &[259, 2]);
    let text = "ab ".repeat(1 << 20);
    let file = folder.join("long.txt");
    std::fs::write(&file, &text).unwrap();
    let mut command = headwise(&["generate", "--model", folder.to_str().unwrap()]);
    let (code, out, error) = run(command.stdin(std::fs::File::open(&file).unwrap()));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        error.starts_with("error: prompt: found ")
            && error.contains(" tokens in the first 16.0 KiB of 3.0 MiB, expected at most the model's 128"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_that_cannot_be_is_one_clean_error() {
    let folder = model("broken", &[259, 2]);
    let broken = TOKENIZER
        .replace(r#""type":"Fuse""#, r#""type":"\u001b[31m""#)
        .replace(r#""type": "Fuse""#, r#""type": "\u001b[31m""#);
    std::fs::write(folder.join("tokenizer.json"), broken).unwrap();
    let (code, out, error) = run(&mut headwise(&["generate", "--model", folder.to_str().unwrap(), "a"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        error.starts_with("error: ")
            && error.contains("tokenizer.json: tokenizer: ")
            && error.lines().count() == 1,
        "{error}"
    );
    assert!(!error.contains("internal error") && !error.contains('\u{1b}'), "{error}");
}
