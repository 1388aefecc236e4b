//! `headwise trace`, `headwise heads …`, `headwise experts …`.

use std::fs;

use headwise::Trace;
use serde_json::Value;

use crate::support::*;

const PROMPT: &str = "And the LORD said unto the king";

#[test]
fn a_trace_is_written_and_reads_back() {
    let out = folder("trace").join("run");
    let out_text = out.to_str().unwrap();
    let args = [
        "trace",
        PROMPT,
        "--capture",
        "L1H2:z",
        "--capture",
        "L*H*:rows",
        "--capture",
        "L0:router",
        "--behind",
        "1",
    ];
    let report = json(&[&args[..], &["--edit", "L0A3:masked", "--out", out_text, "--json"]].concat());
    let trace = Trace::load(&out).unwrap();
    assert_eq!(report["edits"][0]["at"], "L0A3");
    assert_eq!(trace.edits.len(), 1);
    let names: Vec<&str> = trace.recorded.iter().map(|one| one.name.as_str()).collect();
    assert!(names.starts_with(&["blocks.1.attn.hook_z", "blocks.0.attn.hook_rows"]), "{names:?}");
    let shown: Vec<&str> =
        report["recorded"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(shown, names);
    // Nobody chose the expert that is masked.
    let chosen = trace.get("blocks.0.attn.router.hook_chosen").unwrap();
    assert!(!chosen.values.contains(&3.0));
    // What is there already is not written over, and what is no trace is named.
    fails(&[&args[..], &["--out", out_text]].concat(), &["not empty"]);
    fs::write(out.join("trace.json"), "{}").unwrap();
    let error = Trace::load(&out).unwrap_err().to_string();
    assert!(error.contains("trace.json") && error.contains("missing field"), "{error}");
    fs::write(out.join("trace.safetensors"), [255; 20]).unwrap();
    let again = folder("trace-bad").join("run");
    let text =
        stdout(&["trace", "--ids", "5,6", "--capture", "L0:resid-pre", "--out", again.to_str().unwrap()]);
    assert!(text.contains("blocks.0.hook_resid_pre"), "{text}");
    let values = fs::read(again.join("trace.safetensors")).unwrap();
    for broken in [&values[..7], &values[..values.len() - 4], b"".as_slice()] {
        fs::write(again.join("trace.safetensors"), broken).unwrap();
        let error = Trace::load(&again).unwrap_err().to_string();
        assert!(error.contains("trace.safetensors"), "{error}");
    }
    let description = fs::read_to_string(again.join("trace.json")).unwrap();
    fs::write(again.join("trace.safetensors"), &values).unwrap();
    for (from, to) in
        [("\"width\":", "\"width\":9"), ("[0,0]", "[0,0],[0,7]"), ("\"tensor\":\"", "\"tensor\":\"x")]
    {
        fs::write(again.join("trace.json"), description.replacen(from, to, 1)).unwrap();
        let error = Trace::load(&again).unwrap_err().to_string();
        assert!(error.contains("trace.safetensors: tensor"), "{to}: {error}");
    }
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let trace = |capture: &str, parts: &[&str]| fails(&["trace", PROMPT, "--capture", capture], parts);
    trace("L99H0:z", &["layer 99", "L99H0:z"]);
    // What is none is a mistake of the command line.
    for (capture, part) in [("L0H0:y", "ADDRESS[@POSITIONS]:WHAT"), ("L0H0:router", "a layer, such as L3")] {
        let (code, _, stderr) = run(&mut headwise(&["trace", PROMPT, "--capture", capture]));
        assert!(code == 2 && stderr.contains(part), "{stderr}");
    }
    fails(
        &["trace", PROMPT, "--capture", "L*H*:pattern", "--budget", "1KiB"],
        &["bytes to record", "at most 1.0 KiB"],
    );
    let file = folder("observe").join("plan.json");
    fs::write(&file, r#"{"captures": [{"at": "L0H0", "what": "zz"}]}"#).unwrap();
    fails(
        &["trace", PROMPT, "--observe", file.to_str().unwrap()],
        &["plan.json: observe", "unknown variant `zz`"],
    );
    fs::write(
        &file,
        r#"{"captures": [{"at": "L0H*", "what": "rows"}], "masses": [{"name": "a", "of": {"at": [0]}}]}"#,
    )
    .unwrap();
    let report = json(&["trace", PROMPT, "--observe", file.to_str().unwrap(), "--json"]);
    assert_eq!(report["heads"][0]["means"].as_array().unwrap().len(), 7);
}

#[test]
fn analyses_print_tables_and_objects() {
    let rows = |args: &[&str]| {
        let report = json(&[args, &["--json"]].concat());
        let table = stdout(&[args, &["--top", "2"]].concat());
        assert_eq!(table.lines().count(), 3, "{table}");
        report["found"].as_array().unwrap().clone()
    };
    let patterns = rows(&["heads", "patterns", "--repeat", "12"]);
    let induction: Vec<f64> = patterns.iter().map(|one| one["induction"].as_f64().unwrap()).collect();
    assert!(induction.is_sorted_by(|a, b| a >= b), "{induction:?}");
    rows(&["heads", "indicators", PROMPT]);
    rows(&["heads", "divergence", "--with", PROMPT, "--without", "the king"]);
    rows(&["heads", "influence", PROMPT, "The king shall", "--heads", "L1H2", "--heads", "L0A3"]);
    let scores = folder("retrieval").join("scores.json");
    let found = rows(&["heads", "retrieval", "--repeat", "12", "--out", scores.to_str().unwrap()]);
    let read = rows(&["heads", "retrieval", "--from", scores.to_str().unwrap()]);
    assert_eq!(found, read);
    let file: Value = serde_json::from_slice(&fs::read(&scores).unwrap()).unwrap();
    assert_eq!(file.as_object().unwrap().len(), found.len());
    let hunt = json(&[
        "heads",
        "hunt",
        "The king shall",
        "--heads",
        "L0H0",
        "--heads",
        "L0H1",
        "--rounds",
        "2",
        "--json",
    ]);
    assert_eq!(hunt["found"].as_array().unwrap().len(), 2);
    // Texts of two kinds.
    let [class, others] = ["class", "others"].map(|name| folder("experts").join(name));
    fs::write(&class, "And the LORD said\nthe sons of Levi\n").unwrap();
    fs::write(&others, "let mut x = 3;\nfn main() {}\n").unwrap();
    let args =
        ["experts", "difference", "--class", class.to_str().unwrap(), "--others", others.to_str().unwrap()];
    let found = rows(&args);
    let total: f64 = found.iter().map(|one| one["difference"].as_f64().unwrap()).sum();
    assert!(total.abs() < 1e-9, "as many more here as there: {total}");
}

#[test]
fn analyses_say_what_they_lack() {
    fails(&["heads", "patterns"], &["a TEXT, --file or --repeat"]);
    fails(&["heads", "patterns", "--repeat", "100000"], &["half of the model's context"]);
    fails(
        &["heads", "divergence", "--with", "the king", "--without", "the queen"],
        &["end with the same token"],
    );
    fails(&["heads", "influence", "x", "--heads", "L99H0"], &["layer 99"]);
    fails(&["heads", "retrieval", "x"], &["the answer"]);
    let empty = folder("empty-texts").join("texts.txt");
    fs::write(&empty, "").unwrap();
    fails(&["heads", "patterns", "--file", empty.to_str().unwrap()], &["a TEXT, --file or --repeat"]);
}
