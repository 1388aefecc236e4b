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
