//! `headwise routes`.

use std::{collections::BTreeSet, fs};

use safetensors::SafeTensors;

use crate::support::*;

#[test]
fn routes_count_the_reference_choices() {
    let bytes = fs::read(format!("{PROSE}/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    for (index, (prompt, _)) in prompts().iter().enumerate() {
        let report = json(&["routes", prompt, "--json"]);
        for layer in 0..5 {
            for kind in ["attention", "mlp"] {
                let name = format!("{index}.layers.{layer}.{kind}.experts");
                let chosen = words(&reference.tensor(&name).unwrap());
                let used = &report["layers"][layer][kind];
                let share =
                    |expert| chosen.iter().filter(|&&e| e == expert).count() as f64 / chosen.len() as f64;
                let expected: Vec<f64> = (0..8).map(share).collect();
                let entropy: f64 = expected.iter().filter(|share| **share > 0.0).map(|s| -s * s.ln()).sum();
                let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
                assert!(numbers(&used["load"]).iter().zip(&expected).all(|(a, b)| close(*a, *b)), "{name}");
                assert!(close(used["entropy"].as_f64().unwrap(), entropy), "{name}");
            }
        }
        // The text form has a line for each router, all of one width.
        let text = stdout(&["routes", prompt]);
        let (tokens, table) = text.split_once("\n\n").unwrap();
        assert_eq!(tokens, format!("{} tokens", report["tokens"]));
        let widths: BTreeSet<usize> = table.lines().map(str::len).collect();
        assert_eq!((table.lines().count(), widths.len()), (11, 1), "{table}");
    }
}

/// Counted here from the routes of two runs of `logits`.
#[test]
fn against_counts_the_choices_that_another_precision_changes() {
    let room = folder("routes-against");
    let ids: Vec<u32> = (0..60).map(|i| 40 + i * 61 % 3900).collect();
    let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let routes = |precision: &str| {
        let out = room.join(precision);
        stdout(&["logits", "--ids", &list, "--out", out.to_str().unwrap(), "--precision", precision]);
        fs::read(out).unwrap()
    };
    let (before, after) = (routes("f16"), routes("q4"));
    let (before, after) =
        (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    let report = json(&["routes", "--ids", &list, "--against", "q4", "--json"]);
    assert_eq!(report["against"]["precision"], "q4");
    let mut all = 0;
    for (index, one) in report["against"]["routers"].as_array().unwrap().iter().enumerate() {
        let kind = ["attention", "mlp"][index % 2];
        assert_eq!((&one["layer"], &one["router"]), (&(index / 2).into(), &kind.into()));
        let name = format!("layers.{}.{kind}.experts", index / 2);
        let sets = |file: &SafeTensors| -> Vec<BTreeSet<u32>> {
            let chosen = words(&file.tensor(&name).unwrap());
            chosen.chunks(2).map(|token| token.iter().copied().collect()).collect()
        };
        let changed = sets(&before).iter().zip(&sets(&after)).filter(|(a, b)| a != b).count();
        assert_eq!(one["changed"], changed, "{name}");
        all += changed;
    }
    assert!(all > 0, "a precision that changes nothing would test nothing");
    let text = stdout(&["routes", "--ids", &list, "--against", "q4"]);
    assert!(text.starts_with(&format!("60 tokens; in q4 {all} of 600 choices change, ")), "{text}");
    assert!(text.lines().nth(2).unwrap().ends_with("changed"), "{text}");
    assert!(json(&["routes", "--ids", &list, "--json"]).get("against").is_none());
}

#[test]
fn models_that_read_no_single_text_are_refused() {
    let translator = "error: model: found one for the task translate, expected one that reads one text; the heads of a \
                      translation: headwise translate --json\n";
    let classifier = "error: model: found one for the task classify, expected one that reads a text\n";
    for (model, message) in [(TRANSLATOR, translator), (CLASSIFIER, classifier)] {
        fails_with(&["routes", "Open file", "--model", model], message);
    }
}
