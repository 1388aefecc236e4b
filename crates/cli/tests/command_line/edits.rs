//! `--edit`.

use std::fs;

use serde_json::Value;

use crate::support::*;

const PROMPT: &str = "The king shall";

#[test]
fn edits_change_a_text_and_stand_in_the_report() {
    let args = ["generate", PROMPT, "--greedy", "--max-new", "12", "--json"];
    let with = |more: &[&str]| json(&[&args[..], more].concat());
    let plain = with(&[]);
    assert!(plain.get("edits").is_none());
    let edited = with(&["--edit", "L0A3:masked", "--edit", "L1H*@0..2:scale=0"]);
    assert_ne!(edited["ids"], plain["ids"]);
    let expected = serde_json::json!([
        {"at": "L0A3", "change": "masked"},
        {"at": "L1H*", "change": {"scale": 0.0}, "positions": {"range": [0, 2]}},
    ]);
    assert_eq!(edited["edits"], expected);
    // The same from a file, and what was printed is such a file.
    let file = folder("edits").join("plan.json");
    fs::write(&file, serde_json::json!({ "edits": edited["edits"] }).to_string()).unwrap();
    let again = with(&["--edit", file.to_str().unwrap()]);
    assert_eq!((&again["ids"], &again["edits"]), (&edited["ids"], &edited["edits"]));
    // Nobody chooses what is masked.
    let routes = json(&["routes", PROMPT, "--json", "--edit", "L0A3:masked"]);
    assert_eq!(numbers(&routes["layers"][0]["attention"]["load"])[3], 0.0);
    assert!(routes["edits"].is_array());
}

#[test]
fn every_task_takes_edits() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/fashion/examples/bag.png");
    let tasks = [
        (vec!["translate", "Save changes?", "--json"], "cross.L*H*:scale=0"),
        (vec!["translate", "Save changes?", "--json"], "encoder.L0A*:scale=-1"),
        (vec!["fill", "The [MASK] could not be saved.", "--json"], "L*A1:off"),
        (vec!["classify", image, "--json"], "L*H0:scale=0"),
    ];
    for (task, edit) in tasks {
        let one = |report: Value| if report.is_array() { report[0].clone() } else { report };
        let (plain, mut edited) = (one(json(&task)), one(json(&[&task[..], &["--edit", edit]].concat())));
        let edits = edited.as_object_mut().unwrap().remove("edits").unwrap();
        assert_eq!(edits[0]["at"], edit.split_once(':').unwrap().0);
        assert_ne!(plain, edited, "{task:?} {edit}");
    }
}

#[test]
fn edits_of_what_is_not_there_are_refused() {
    let generate = |edit: &str, parts: &[&str]| fails(&["generate", PROMPT, "--edit", edit], parts);
    generate("L1H2:off", &["L1H2:off", "scale=0 takes out a head"]);
    generate("L1H2:scale=x", &["scale=NUMBER"]);
    generate("L99H0:scale=0", &["layer 99", "L99H0:scale=0"]);
    generate("L0A999:off", &["head expert 999", "one below its 8 experts"]);
    generate("cross.L0H0:scale=0", &["a model that translates"]);
    generate("no-such-file.json", &["no-such-file.json"]);
    generate("L0A3", &["L0A3", "ADDRESS"]);
    generate("", &["ADDRESS"]);
    let file = folder("edits-refused").join("plan.json");
    for (text, part) in [
        ("", "EOF"),
        ("[]", "edits"),
        (r#"{"edits": [{"at": "L0A1", "change": "on"}]}"#, "unknown variant `on`"),
        (r#"{"edits": [{"at": "L0H1", "change": {"scale": null}}]}"#, "null"),
        (r#"{"edits": [{"at": "L0H1", "change": {"scale": 0}, "where": 1}]}"#, "unknown field `where`"),
    ] {
        fs::write(&file, text).unwrap();
        generate(file.to_str().unwrap(), &["plan.json: edits", part]);
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    generate(file.to_str().unwrap(), &["plan.json"]);
}
