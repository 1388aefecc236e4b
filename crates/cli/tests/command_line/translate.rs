//! `headwise translate`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::*;

/// Whether the reference decoder and headwise agree on all sentences is for `models/ui-en-de/score`; on these they do.
const SENTENCES: usize = 4;

fn reference() -> Value {
    read_json(&format!("{TRANSLATOR}/reference.json"))
}

fn strings(values: &Value) -> Vec<&str> {
    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn texts_are_those_of_the_reference() {
    let reference = reference();
    for index in 0..SENTENCES {
        let source = reference["test"][index]["en"].as_str().unwrap();
        let text = reference["greedy_text"][index].as_str().unwrap();
        assert_eq!(stdout(&["translate", source]), format!("{text}\n"));
        let report = json(&["translate", source, "--json"]);
        assert_eq!((&report["text"], &report["ids"]), (&text.into(), &reference["greedy_ids"][index]));
        let report = json(&["translate", source, "--beams", "4", "--json"]);
        assert_eq!(report["ids"], reference["beam4_ids"][index]);
    }
}

#[test]
fn the_text_may_come_from_stdin() {
    let from_argument = stdout(&["translate", "Open file"]);
    for end in ["", "\n", "\r\n"] {
        let mut child = headwise(&["translate"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("Open file{end}").as_bytes()).unwrap();
        assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), from_argument);
    }
}

#[test]
fn json_has_the_heads_of_every_token() {
    let report = json(&["translate", "Save changes before closing?", "--json"]);
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["ids", "score", "source_ids", "source_tokens", "text", "tokens"]);
    assert!(report["score"].as_f64().unwrap() < 0.0);
    for (ids, tokens, layers, kinds) in [
        ("source_ids", "source_tokens", 4, &["attention"][..]),
        ("ids", "tokens", 3, &["attention", "cross"]),
    ] {
        let tokens = report[tokens].as_array().unwrap();
        let found: Vec<&Value> = tokens.iter().map(|token| &token["id"]).collect();
        assert_eq!(found, report[ids].as_array().unwrap().iter().collect::<Vec<_>>());
        assert_eq!(found.last().unwrap().as_u64(), Some(2), "the end token");
        for token in tokens {
            let routes = token["routes"]["layers"].as_array().unwrap();
            assert_eq!(routes.len(), layers);
            for (layer, kind) in routes.iter().flat_map(|layer| kinds.iter().map(move |kind| (layer, kind))) {
                let choices = layer[kind].as_array().unwrap();
                let gates: f64 = choices.iter().map(|choice| choice["gate"].as_f64().unwrap()).sum();
                assert!(choices.len() == 4 && (gates - 1.0).abs() < 1e-4, "{kind}: {choices:?}");
                assert!(choices.iter().all(|choice| choice["expert"].as_u64().unwrap() < 16));
            }
        }
    }
    let texts = |tokens: &str| -> String {
        report[tokens].as_array().unwrap().iter().map(|token| token["text"].as_str().unwrap()).collect()
    };
    assert_eq!(texts("source_tokens"), "Save changes before closing?");
    assert_eq!(texts("tokens"), report["text"]);
}

#[test]
fn shown_heads_are_those_of_the_cross_attention() {
    let args = ["translate", "Open the file", "--show-heads", "--layer", "2"];
    let shown = stdout(&args);
    let (legend, text) = shown.split_once("\n\n").unwrap();
    assert_eq!(legend, "cross-attention head experts of layer 2 (0 to 2): text[first choice,second,…]");
    let (plain, routes) = without_brackets(text);
    let report = json(&[&args[..], &["--json"]].concat());
    assert_eq!(plain.trim_end(), report["text"].as_str().unwrap());
    let tokens = report["tokens"].as_array().unwrap();
    // The end token is not shown.
    assert_eq!(routes.len(), tokens.len() - 1);
    for (found, token) in routes.iter().zip(tokens) {
        let cross = token["routes"]["layers"][2]["cross"].as_array().unwrap();
        assert_eq!(
            found,
            &cross.iter().map(|choice| choice["expert"].as_u64().unwrap() as u32).collect::<Vec<_>>()
        );
    }
}

#[test]
fn files_are_translated_line_by_line() {
    let reference = reference();
    let folder = folder("translate-lines");
    let (input, output) = (folder.join("en.txt"), folder.join("de.txt"));
    let sources: Vec<&str> = (0..18).map(|index| reference["test"][index]["en"].as_str().unwrap()).collect();
    let expected = &strings(&reference["greedy_text"])[..18];
    // Empty lines first, between and last; both kinds of line ends; a mark of byte order; batches with a rest.
    let lines = |texts: &[&str], end: &str| {
        format!("{end}{}{end}  {end}{}{end}{end}", texts[..5].join(end), texts[5..].join(end))
    };
    let args = [
        "translate",
        "--input",
        input.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
        "--batch",
        "5",
    ];
    for (before, end) in [("", "\n"), ("\u{feff}", "\r\n")] {
        fs::write(&input, before.to_owned() + &lines(&sources, end)).unwrap();
        let (code, text, report) = run(&mut headwise(&args));
        assert_eq!((code, text.as_str()), (0, ""), "{report}");
        assert!(report.starts_with("18 lines in ") && report.contains(" lines/s; "), "{report}");
        assert_eq!(fs::read_to_string(&output).unwrap(), lines(expected, "\n").replace("  \n", "\n"));
    }
    // Without a line break at the end there is none; an existing file is replaced.
    fs::write(&input, "Open file\n\nSave").unwrap();
    let (code, _, report) = run(&mut headwise(&[&args[..], &["--quiet"]].concat()));
    assert_eq!((code, report.as_str()), (0, ""));
    let text = fs::read_to_string(&output).unwrap();
    assert!(text.lines().count() == 3 && !text.ends_with('\n'), "{text}");
    fs::write(&input, "").unwrap();
    stdout(&args);
    assert_eq!(fs::read(&output).unwrap(), b"");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn bad_lines_are_named_and_nothing_is_written() {
    let folder = folder("translate-bad");
    let (input, output) = (folder.join("en.txt"), folder.join("de.txt"));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let args = ["translate", "--input", input, "--output", output];

    fs::write(input, b"Open\n\nSave\xff\nClose\n").unwrap();
    fails_with(&args, &format!("error: {input}: line 3: found bytes that are no text, expected UTF-8\n"));
    fs::write(input, format!("Open\n{}\n", "file ".repeat(300))).unwrap();
    let message = format!("error: {input}: line 2: found 302 tokens, expected at most the model's 256\n");
    fails_with(&args, &message);
    let missing = format!("{input}.no");
    fails(&["translate", "--input", &missing, "--output", output], &[&missing]);
    fs::write(input, "Open\n").unwrap();
    fails(
        &["translate", "--input", input, "--output", folder.to_str().unwrap()],
        &[folder.to_str().unwrap()],
    );
    let nowhere = format!("{input}/no/de.txt");
    fails(&["translate", "--input", input, "--output", &nowhere], &[&nowhere]);
    fails_with(&[&args[..], &["--batch", "0"]].concat(), "error: batch: found 0, expected at least 1\n");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let folder = folder("translate-cancelled");
    let (input, output) = (folder.join("en.txt"), folder.join("de.txt"));
    fs::write(&input, "Save changes before closing the window?\n".repeat(4000)).unwrap();
    let args = ["translate", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let mut child = headwise(&args).env("RUST_LOG", "headwise=debug").spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("translated a batch")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(log.last().as_deref(), Some("error: cancelled"));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn what_goes_wrong_is_one_message() {
    let long = "file ".repeat(300);
    let cases: [(&[&str], &str); 6] = [
        (&["translate", " "], "text: found nothing, expected a text to translate"),
        (&["translate", "x", "--beams", "0"], "beams: found 0, expected 1 to 8"),
        (&["translate", "x", "--layer", "3"], "layer: found 3, expected below the model's 3 layers"),
        (&["translate", "x", "--max-new", "0"], "max new tokens: found 0, expected at least 1"),
        (&["translate", &long], "prompt: found 302 tokens, expected at most the model's 256"),
        (
            &["translate", "x", "--model", PROSE],
            "model: found one for the task generate, expected one for the task translate",
        ),
    ];
    for (args, message) in cases {
        fails_with(args, &format!("error: {message}\n"));
    }
    fails_with(
        &["generate", "x", "--model", TRANSLATOR],
        "error: model: found one for the task translate, expected one for the task generate\n",
    );
    let usage: [&[&str]; 4] = [
        &["translate", "--input", "x"],
        &["translate", "x", "--output", "y"],
        &["translate", "x", "--input", "x", "--output", "y"],
        &["translate", "--input", "x", "--output", "y", "--json"],
    ];
    for args in usage {
        let (code, stdout, stderr) = run(&mut headwise(args));
        assert!(code == 2 && stdout.is_empty() && stderr.contains("--help"), "{args:?}: {stderr}");
    }
}
