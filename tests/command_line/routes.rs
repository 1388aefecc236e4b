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

#[test]
fn models_that_read_no_single_text_are_refused() {
    let translator = "error: model: found one for the task translate, expected one that reads one text; the heads of a \
                      translation: headwise translate --json\n";
    let classifier = "error: model: found one for the task classify, expected one that reads a text\n";
    for (model, message) in [(TRANSLATOR, translator), (CLASSIFIER, classifier)] {
        fails_with(&["routes", "Open file", "--model", model], message);
    }
}
