//! `headwise fill`.

use serde_json::Value;

use crate::support::*;

/// Sentences of the reference as a user types them, whose routes and candidates are nowhere near-ties.
fn typed() -> Vec<Value> {
    let mut reference = read_json(&format!("{FILLER}/reference.json"));
    let Value::Array(sentences) = reference["typed"].take() else { panic!("no typed sentences") };
    let clear = |sentence: &Value| {
        let sorted = numbers(&sentence["top5_probabilities"]);
        let apart = sorted.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-5);
        sentence["route_margin"].as_f64().unwrap() > 1e-4 && apart
    };
    let clear: Vec<Value> = sentences.into_iter().filter(clear).collect();
    assert!(clear.len() >= 2, "too few clear sentences");
    clear
}

fn text(sentence: &Value) -> &str {
    sentence["text"].as_str().unwrap()
}

#[test]
fn candidates_are_those_of_the_reference() {
    for sentence in typed() {
        let report = json(&["fill", text(&sentence), "--json"]);
        assert_eq!(report["ids"], sentence["ids"]);
        let masks = report["masks"].as_array().unwrap();
        assert_eq!(masks.len(), sentence["positions"].as_array().unwrap().len());
        for (index, mask) in masks.iter().enumerate() {
            assert_eq!(mask["position"], sentence["positions"][index]);
            let candidates = mask["candidates"].as_array().unwrap();
            let ids: Vec<&Value> = candidates.iter().map(|candidate| &candidate["id"]).collect();
            let expected = sentence["top5_ids"][index].as_array().unwrap();
            assert_eq!(ids, expected.iter().collect::<Vec<_>>(), "{}", text(&sentence));
            let found: Vec<f64> =
                candidates.iter().map(|candidate| candidate["probability"].as_f64().unwrap()).collect();
            assert_close(&found, &numbers(&sentence["top5_probabilities"][index]), 1e-4);
            let named = sentence["top5_tokens"][index].as_array().unwrap();
            for (candidate, name) in candidates.iter().zip(named) {
                assert_eq!(candidate["text"], name.as_str().unwrap().trim_start_matches('▁'));
            }
        }
    }
}

#[test]
fn one_mask_is_filled_in() {
    for sentence in typed().iter().take(3) {
        let report = json(&["fill", text(sentence), "--top", "3", "--json"]);
        let candidates = report["masks"][0]["candidates"].as_array().unwrap();
        let lines: String = candidates
            .iter()
            .map(|candidate| {
                let percent = 100.0 * candidate["probability"].as_f64().unwrap();
                format!("{percent:4.1} %  {}\n", candidate["text"].as_str().unwrap())
            })
            .collect();
        let filled = text(sentence).replace("[MASK]", candidates[0]["text"].as_str().unwrap());
        assert_eq!(report["text"], filled.as_str());
        assert_eq!(stdout(&["fill", text(sentence), "--top", "3"]), format!("{lines}\n{filled}\n"));
    }
}

#[test]
fn several_masks_have_a_list_each() {
    let shown = stdout(&["fill", "Could not [MASK] to the [MASK].", "--top", "2"]);
    let blocks: Vec<Vec<&str>> = shown.split("\n\n").map(|block| block.lines().collect()).collect();
    assert_eq!(blocks.len(), 2, "{shown}");
    for (number, block) in (1..).zip(&blocks) {
        assert_eq!((block[0], block.len()), (&*format!("mask {number}"), 3), "{shown}");
        assert!(block[1..].iter().all(|line| line.contains(" %  ")), "{shown}");
    }
}

#[test]
fn shown_heads_are_those_of_the_report() {
    let sentence = &typed()[0];
    let args = ["fill", text(sentence), "--show-heads", "--layer", "1"];
    let shown = stdout(&args);
    let [_, legend, painted] = shown.split("\n\n").collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert_eq!(legend, "head experts of layer 1 (0 to 3): text[first choice,second,…]");
    let (plain, routes) = without_brackets(painted);
    let report = json(&[&args[..], &["--json"]].concat());
    assert_eq!(plain.trim_end(), report["text"].as_str().unwrap());
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!((routes.len(), tokens.len()), (tokens.len() - 1, sentence["ids"].as_array().unwrap().len()));
    for (found, token) in routes.iter().zip(tokens) {
        let heads = token["routes"]["layers"][1]["attention"].as_array().unwrap();
        assert_eq!(
            found,
            &heads.iter().map(|choice| choice["expert"].as_u64().unwrap() as u32).collect::<Vec<_>>()
        );
    }
    assert!(json(&["fill", text(sentence), "--json"]).get("tokens").is_none());
}

#[test]
fn what_goes_wrong_is_one_message() {
    let cases: [(&[&str], &str); 5] = [
        (&["fill", "Save the file"], "text: found no mask, expected [MASK] at least once"),
        (&["fill", "a [MASK]", "--top", "0"], "top: found 0, expected 1 to 16"),
        (&["fill", "a [MASK]", "--top", "17"], "top: found 17, expected 1 to 16"),
        (&["fill", "a [MASK]", "--layer", "4"], "layer: found 4, expected below the model's 4 layers"),
        (
            &["fill", "a [MASK]", "--model", TRANSLATOR],
            "model: found one for the task translate, expected one for the task fill",
        ),
    ];
    for (args, message) in cases {
        fails_with(args, &format!("error: {message}\n"));
    }
    let long = "word ".repeat(300) + "[MASK]";
    fails(&["fill", &long], &["prompt: found 302 tokens", "256"]);
}
