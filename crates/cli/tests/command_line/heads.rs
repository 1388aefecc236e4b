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

/// The models whose heads have known jobs.
fn known(name: &str) -> String {
    format!("{}/../../models/heads/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_task_is_learnt_and_done_without_examples() {
    let (model, pairs) = (known("tasks"), format!("{}/task-0.json", known("tasks")));
    let task = folder("task").join("first.task");
    let args = ["task", "learn", &pairs, "--model", &model, "--out", task.to_str().unwrap(), "--json"];
    let template = ["--template", "{input} > {output} ; ", "--shots", "5", "--prompts", "20"];
    let report = json(&[&args[..], &template].concat());
    assert_eq!(report["questions"], 12);
    assert!(
        report["right"].as_f64().unwrap() >= 0.9 && report["right_without"].as_f64().unwrap() < 0.6,
        "{report}"
    );
    // What was learnt answers as the pairs say.
    let file: Value = serde_json::from_slice(&fs::read(&pairs).unwrap()).unwrap();
    let right = file["test"].as_array().unwrap()[..3].iter().filter(|pair| {
        let args =
            ["task", "run", task.to_str().unwrap(), pair["input"].as_str().unwrap(), "--model", &model];
        stdout(&args).trim() == pair["output"].as_str().unwrap()
    });
    assert!(right.count() >= 2);
    fails(
        &["task", "run", &pairs, "ant", "--model", &model],
        &["task-0.json: task", "missing field `template`"],
    );
    fails(
        &["task", "learn", task.to_str().unwrap(), "--model", &model, "--out", "x.task"],
        &["first.task: pairs"],
    );
    fails(&[&args[..7], &["--template", "{input}"]].concat(), &["{output} behind it"]);
}

#[test]
fn texts_are_scored_without_some_heads_and_in_shards() {
    let model = known("copier");
    let folder = folder("influence");
    let texts = folder.join("texts.jsonl");
    let lines = fs::read_to_string(format!("{model}/documents.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().take(6).collect();
    fs::write(&texts, lines.join("\n")).unwrap();
    let scores = folder.join("scores.json");
    fs::write(&scores, r#"{"1-2": [0.9], "1-3": [0.8], "0-0": [0.1], "1-1": [0.7]}"#).unwrap();
    let score = |out: &str, more: &[&str]| -> Vec<Value> {
        let out = folder.join(out);
        let args =
            ["score-data", texts.to_str().unwrap(), "--model", &model, "--out", out.to_str().unwrap(), "-q"];
        stdout(&[&args[..], more].concat());
        fs::read_to_string(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let named = score("named.jsonl", &["--without", "L1H2", "--without", "L1H3"]);
    let ranked = score("ranked.jsonl", &["--retrieval", scores.to_str().unwrap(), "--best", "50"]);
    assert_eq!(named, ranked);
    assert_eq!(named[0]["edits"], serde_json::json!(["L1H2:uniform", "L1H3:uniform"]));
    let plain = score("plain.jsonl", &[]);
    for (line, plain) in named.iter().zip(&plain) {
        assert_eq!((&line["index"], &line["logprob"]), (&plain["index"], &plain["logprob"]));
        let [own, masked, influence] =
            ["logprob", "masked", "influence"].map(|name| line[name].as_f64().unwrap());
        assert!((influence - (masked - own) / own).abs() < 1e-9);
        assert!(plain.get("masked").is_none() && plain.get("edits").is_none());
    }
    // Texts that repeat need these heads; chains do not.
    let repeats = lines.iter().map(|line| line.contains("\"block\""));
    for (line, repeats) in named.iter().zip(repeats) {
        assert_eq!(line["influence"].as_f64().unwrap() > 0.3, repeats, "{line}");
    }
    let shards: Vec<Value> = ["0/3", "1/3", "2/3"]
        .iter()
        .flat_map(|shard| {
            score(&format!("shard-{}.jsonl", &shard[..1]), &["--shard", shard, "--without", "L1H2"])
        })
        .collect();
    let indices: Vec<u64> = shards.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 3, 1, 4, 2, 5]);
    for (args, part) in [(["--shard", "3/3"], "I below N"), (["--shard", "x"], "I below N")] {
        let (code, _, stderr) = run(&mut headwise(&[&["score", "a", "--out", "b"], &args[..]].concat()));
        assert!(code == 2 && stderr.contains(part), "{stderr}");
    }
    let text = texts.to_str().unwrap();
    fails(&["score", text, "--out", "b.jsonl", "--model", &model, "--without", "L9H0"], &["layer 9"]);
    fails(&["score", text, "--out", "b.jsonl", "--retrieval", text], &["texts.jsonl: scores"]);
}

#[test]
fn what_carries_a_difference_and_how_far_heads_look_is_shown() {
    let model = known("copier");
    let args = [
        "heads",
        "patch",
        "Ira Cy Jay Cal Ira Cy",
        "--other",
        "Ira Cy Guy Cal Ira Cy",
        "--answers",
        " Jay",
        " Guy",
    ];
    let find = |more: &[&str]| {
        let report = json(&[&args[..], &["--model", &model, "--json"], more].concat());
        report["found"].as_array().unwrap().clone()
    };
    let (any, direct) = (find(&[]), find(&["--direct"]));
    assert_eq!((any.len(), direct.len()), (8, 8));
    // What carries it stands in layer 1, and needs no later head.
    assert!(
        any[0]["at"].as_str().unwrap().starts_with("L1") && any[0]["effect"].as_f64().unwrap() > 0.1,
        "{any:?}"
    );
    assert_eq!(any[0]["at"], direct[0]["at"]);
    let into = find(&["--into", "L1H*:k"]);
    assert!(into.iter().all(|one| one["effect"].as_f64().unwrap().is_finite()));
    fails(&[&args[..7], &["", "--model", &model]].concat(), &["a token of its own"]);
    fails(
        &["heads", "patch", "Ira", "--other", "Ira Cy", "--answers", " Jay", " Guy", "--model", &model],
        &["same length"],
    );
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/fashion/examples/bag.png");
    let rings = json(&["heads", "rings", image, "--json"]);
    for one in rings["found"].as_array().unwrap() {
        let sum: f64 = numbers(&one["rings"]).iter().sum::<f64>() + one["class"].as_f64().unwrap();
        assert!(one["patches"] == 0 || (sum - 1.0).abs() < 1e-4, "{one}");
    }
    fails(&["heads", "rings", "no-such.png"], &["no-such.png"]);
    fails(&["heads", "rings", image, "--model", &model], &["classify"]);
}

#[test]
fn heads_guide_and_are_reinforced() {
    let model = known("copier");
    let text = "Abe Ben Cal Dan Eli Fay Gus Hal Ida Jan Kim Lea Abe Ben Cal Dan Eli Fay Gus Hal Ida";
    let guide = |more: &[&str]| {
        let args = ["heads", "guide", text, "--model", &model, "--heads", "L1H*", "--max-new", "3"];
        stdout(&[&args[..], more].concat())
    };
    assert_eq!(guide(&[]).trim(), format!("{text} Jan Kim Lea"));
    // Towards what it says without them, it no longer copies.
    assert_ne!(guide(&["--weight", "-1", "--change", "uniform"]).trim(), format!("{text} Jan Kim Lea"));
    let plan = folder("reinforce").join("plan.json");
    let args = ["heads", "reinforce", "--with", text, "--without", "Fay Gus Hal Ida", "--model", &model];
    let printed = json(&args);
    stdout(&[&args[..], &["--out", plan.to_str().unwrap()]].concat());
    let written: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    assert_eq!(printed, written);
    assert!(!written["edits"].as_array().unwrap().is_empty());
    let args =
        ["generate", text, "--model", &model, "--greedy", "--max-new", "3", "--edit", plan.to_str().unwrap()];
    assert!(stdout(&args).starts_with(text));
    fails(
        &[&args[..0], &["heads", "guide", text, "--model", &model, "--heads", "L9H0"]].concat(),
        &["layer 9"],
    );
}
