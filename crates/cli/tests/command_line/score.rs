//! `headwise score`: a line for each text, none lost and none twice, whenever a run ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::*;

/// The objects of a file's lines.
fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// ln p of `ids` but the first, by the reference's logits.
fn reference_logprobs(tensors: &SafeTensors<'_>, prompt: usize, ids: &[u32]) -> Vec<f64> {
    let logits = floats(&tensors.tensor(&format!("{prompt}.logits")).unwrap());
    let rows = logits.chunks_exact(logits.len() / ids.len());
    let of = |(row, &id): (&[f64], &u32)| {
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row[id as usize] - highest - row.iter().map(|logit| (logit - highest).exp()).sum::<f64>().ln()
    };
    rows.zip(&ids[1..]).map(of).collect()
}

#[test]
fn each_text_has_a_line_with_the_numbers_of_the_reference() {
    let folder = folder("score-reference");
    let (input, out) = (folder.join("texts.txt"), folder.join("out.jsonl"));
    let texts: Vec<String> = prompts().into_iter().map(|(prompt, _)| prompt).collect();
    fs::write(&input, texts.join("\r\n") + "\n\nX").unwrap();
    let args = ["score", text(&input), "--out", text(&out)];
    let (code, printed, report) = run(&mut headwise(&args));
    assert_eq!((code, printed.as_str()), (0, ""), "{report}");
    assert!(report.starts_with("9 lines in ") && report.contains(" lines/s; "), "{report}");
    let short = lines(&out);
    stdout(&[&args[..], &["--tokens"]].concat());
    let long = lines(&out);
    assert_eq!((short.len(), long.len()), (9, 9));

    let bytes = fs::read(format!("{PROSE}/reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for prompt in 0..7 {
        let ids = words(&tensors.tensor(&format!("{prompt}.ids")).unwrap());
        let found = &long[prompt];
        assert_eq!(found["ids"], json!(ids));
        // The reference has the logits of these prompts.
        if [0, 3].contains(&prompt) {
            let expected = reference_logprobs(&tensors, prompt, &ids);
            let each = numbers(&found["logprobs"]);
            assert_eq!(each.len(), expected.len());
            assert!(each.iter().zip(&expected).all(|(found, wanted)| (found - wanted).abs() < 2e-3));
            let (sum, count) = (expected.iter().sum::<f64>(), expected.len() as f64);
            assert!((found["logprob"].as_f64().unwrap() - sum).abs() < 2e-3 * count);
            let perplexity = found["perplexity"].as_f64().unwrap();
            assert!((perplexity / (-sum / count).exp() - 1.0).abs() < 2e-3, "{perplexity}");
        }
        let Value::Object(mut fields) = found.clone() else { panic!("{found}") };
        fields.retain(|name, _| !["ids", "logprobs"].contains(&name.as_str()));
        assert_eq!(short[prompt], Value::Object(fields));
        assert_eq!((&short[prompt]["index"], &short[prompt]["tokens"]), (&json!(prompt), &json!(ids.len())));
    }
    // An empty line, and one of a single token, have nothing to score.
    assert_eq!(short[7], json!({"index": 7, "tokens": 0, "logprob": 0.0, "perplexity": null}));
    assert_eq!(short[8], json!({"index": 8, "tokens": 1, "logprob": 0.0, "perplexity": null}));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn texts_of_json_lines_are_those_of_their_field() {
    let folder = folder("score-json");
    let texts = ["The king", "She \"said\"\n", "", "Überall"];
    let objects = |field: &str| texts.map(|text| json!({"id": 5, field: text}).to_string()).join("\n");
    let (out, other) = (folder.join("out"), folder.join("other"));
    fs::write(folder.join("a.jsonl"), objects("text")).unwrap();
    fs::write(folder.join("b.data"), objects("body")).unwrap();
    stdout(&["score", "-q", text(&folder.join("a.jsonl")), "--out", text(&out), "--tokens"]);
    let field = ["--field", "body", "--tokens"];
    stdout(&[&["score", "-q", text(&folder.join("b.data")), "--out", text(&other)], &field[..]].concat());
    assert_eq!(fs::read(&out).unwrap(), fs::read(&other).unwrap());
    let found = lines(&out);
    assert_eq!(found.len(), 4);
    assert!(found[1]["tokens"].as_u64() > Some(2) && found[2]["tokens"] == 0);
    fs::write(folder.join("none.txt"), "").unwrap();
    stdout(&["score", text(&folder.join("none.txt")), "--out", text(&out)]);
    assert_eq!(fs::read(&out).unwrap(), b"");
}

#[test]
fn what_is_wrong_with_a_line_is_said_and_nothing_is_written() {
    let folder = folder("score-wrong");
    let (txt, jsonl, out) = (folder.join("in.txt"), folder.join("in.jsonl"), folder.join("out"));
    let long = "king ".repeat(300);
    let cases: [(&Path, Vec<u8>, &str); 8] = [
        (&txt, b"a\nb\xff\n".to_vec(), "line 2: found bytes that are no text, expected UTF-8"),
        (
            &txt,
            format!("a\n{long}\n").into_bytes(),
            "line 2: found 301 tokens, expected at most the model's 256",
        ),
        (
            &jsonl,
            b"{\"text\": \"a\"}\n[]\n".to_vec(),
            "line 2: found another kind of value, expected a JSON object",
        ),
        (
            &jsonl,
            b"{\"text\": 7}\n".to_vec(),
            "line 1: found another kind of value there, expected a JSON object",
        ),
        (
            &jsonl,
            b"{\"t\": \"a\"}\n".to_vec(),
            "line 1: found no such field, expected a JSON object with a string \"text\"",
        ),
        (&jsonl, b"{\"text\": \"a\"}\n\n".to_vec(), "line 2: found no JSON (EOF"),
        (&jsonl, b"{\"text\": \"a\"".to_vec(), "line 1: found no JSON (EOF"),
        (&txt, vec![b'a'; (16 << 20) + 1], "line 1: found more than 16 MiB, expected at most 16 MiB"),
    ];
    for (input, bytes, message) in cases {
        fs::write(input, bytes).unwrap();
        fails(&["score", text(input), "--out", text(&out)], &[&format!("{}: {message}", text(input))]);
    }
    let missing = folder.join("missing");
    fails(&["score", text(&missing), "--out", text(&out)], &[text(&missing)]);
    fails(
        &["score", text(&folder), "--out", text(&out)],
        &["file: found what can be read once, or a folder"],
    );
    fs::write(&txt, "a b\n").unwrap();
    fails_with(
        &["score", text(&txt), "--out", text(&out), "--model", FILLER],
        "error: model: found one for the task fill, expected one for the task generate\n",
    );
    let (code, _, stderr) = run(&mut headwise(&["score", text(&txt)]));
    assert!(code == 2 && stderr.contains("--out"), "{stderr}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);

    // A long one is read in pieces: 301 tokens, of which all but the first are scored.
    fs::write(&txt, &long).unwrap();
    stdout(&["score", text(&txt), "--out", text(&out), "--cut", "--tokens"]);
    assert_eq!(lines(&out)[0]["logprobs"].as_array().unwrap().len(), 300);
}

/// A file of so many lines, and where its scores go.
fn many(test: &str, count: usize) -> (PathBuf, PathBuf, PathBuf) {
    let folder = folder(test);
    let held_out = read_json(&format!("{PROSE}/heldout.json"));
    let words: Vec<String> = all_text(&held_out).split_whitespace().map(str::to_owned).collect();
    let line = |index: usize| words[index * 7 % (words.len() - 30)..][..3 + index % 5].join(" ");
    let input = folder.join("in.txt");
    fs::write(&input, (0..count).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    (folder.clone(), input, folder.join("out.jsonl"))
}

fn all_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone() + " ",
        Value::Array(values) => values.iter().map(all_text).collect(),
        Value::Object(fields) => fields.values().map(all_text).collect(),
        _ => String::new(),
    }
}

/// What a run that is under way has written, once it has something.
fn partial(folder: &Path, child: &mut Child) -> PathBuf {
    let start = Instant::now();
    loop {
        let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut kept = found.filter(|path| path.extension().is_some_and(|ending| ending == "partial"));
        if let Some(path) = kept.next().filter(|path| fs::metadata(path).is_ok_and(|data| data.len() > 0)) {
            return path;
        }
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be stopped");
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_that_was_killed_goes_on_without_a_line_lost_or_twice() {
    let (folder, input, out) = many("score-killed", 600);
    let args = ["score", "--quiet", text(&input), "--out", text(&out), "--tokens"];
    stdout(&args);
    let expected = fs::read(&out).unwrap();
    assert_eq!(
        lines(&out).iter().map(|line| line["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        (0..600).collect::<Vec<_>>()
    );
    fs::write(&out, "old").unwrap();

    let mut child = headwise(&args).spawn().unwrap();
    let kept = partial(&folder, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let written = fs::read(&kept).unwrap();
    assert!(written.len() < expected.len() && fs::read(&out).unwrap() == b"old");
    // What may stand there after a kill, or after the power went: half a line, lines of nothing, lines twice, all lines.
    let (whole, _) = written.split_at(written.iter().rposition(|byte| *byte == b'\n').unwrap() + 1);
    let damaged = [
        whole[..whole.len() - 1].to_vec(),
        [whole, &[0; 50]].concat(),
        [whole, whole].concat(),
        whole[10..].to_vec(),
        expected.clone(),
    ];
    for bytes in damaged {
        fs::write(&kept, bytes).unwrap();
        stdout(&args);
        assert!(fs::read(&out).unwrap() == expected, "another result");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }
    // Other options have nothing to do with it.
    fs::write(&kept, &written).unwrap();
    stdout(&args[..5]);
    assert!(lines(&out).len() == 600 && fs::read(&kept).unwrap() == written);
    // Neither have kernels that may round otherwise, nor another way to read long lines.
    for other in [&["--kernels", "plain"][..], &["--cut"]] {
        stdout(&[&args[..], other].concat());
        assert!(fs::read(&kept).unwrap() == written, "{other:?}");
    }
    // What is read is not written over.
    let texts = fs::read(&input).unwrap();
    fails(&["score", text(&input), "--out", text(&input)], &["which is read", "another file"]);
    assert!(fs::read(&input).unwrap() == texts);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_says_where() {
    let (folder, input, out) = many("score-interrupted", 600);
    let args = ["score", text(&input), "--out", text(&out)];
    let mut child = headwise(&args).spawn().unwrap();
    let kept = partial(&folder, &mut child);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let done = lines(&kept).len();
    let message = format!(
        "{done} lines are kept in {}: the same command goes on there\nerror: cancelled\n",
        kept.display()
    );
    assert!(done > 0 && String::from_utf8(output.stderr).unwrap().ends_with(&message), "{done} lines");
    let (code, _, report) = run(&mut headwise(&args));
    assert_eq!(code, 0, "{report}");
    let rest = format!("{} lines in ", 600 - done);
    assert!(
        report.starts_with(&rest) && report.contains(&format!(" after {done} that were there")),
        "{report}"
    );
    assert_eq!(lines(&out).len(), 600);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

/// Interrupts runs in the midst of texts that are scored together, more and more of them, until one of the pieces is cut.
#[cfg(unix)]
#[test]
fn ctrl_c_loses_nothing_that_is_scored_among_the_texts_of_a_piece() {
    let (folder, input, out) = many("score-cut", 120);
    // Some 70 of these are a piece, and 10 a step.
    let held_out = all_text(&read_json(&format!("{PROSE}/heldout.json")));
    let words: Vec<&str> = held_out.split_whitespace().collect();
    let line = |index: usize| words[index * 11 % (words.len() - 80)..][..80].join(" ");
    fs::write(&input, (0..120).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let args = ["score", "--quiet", text(&input), "--out", text(&out), "--tokens"];
    stdout(&args);
    let expected = lines(&out);
    assert_eq!(expected.len(), 120);
    fs::remove_file(&out).unwrap();

    let (mut delay, mut pieces, mut cut) = (Duration::from_millis(300), Vec::new(), false);
    while !cut {
        let mut child = headwise(&args).spawn().unwrap();
        let kept = partial(&folder, &mut child);
        thread::sleep(delay);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert!(!child.wait().unwrap().success(), "done after {delay:?}, {pieces:?} lines");
        let done = lines(&kept);
        assert!(done.iter().enumerate().all(|(index, line)| line["index"] == index));
        // Whole pieces are of 32 KiB: their last line is the first with which there are as many.
        let texts = fs::read_to_string(&input).unwrap();
        let mut bytes = 0;
        for line in texts.lines().take(done.len()) {
            bytes = if bytes >= 32 << 10 { line.len() } else { bytes + line.len() };
        }
        cut = bytes < 32 << 10;
        pieces.push(done.len());
        delay *= 2;
    }
    assert!(pieces.is_sorted(), "{pieces:?}");
    stdout(&args);
    let found = lines(&out);
    assert_eq!(found.len(), 120);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((&found["index"], &found["ids"]), (&expected["index"], &expected["ids"]));
        let (found, expected) = (numbers(&found["logprobs"]), numbers(&expected["logprobs"]));
        assert_eq!(found.len(), expected.len());
        // As close as to the reference.
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 2e-4));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}
