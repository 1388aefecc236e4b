//! Scores and vectors of texts: what families other than decoders of one kind do with them.

use headwise::{Embed, KernelChoice, LoadOptions, Pooling, Score, block_on};
use std::path::PathBuf;

use crate::{
    models::try_load,
    reference::{
        checkpoints::{SEED, SOURCE, variants, write_random},
        max_difference,
        moa::Moa,
        widen,
    },
};

/// A variant of random weights, and its folder.
fn variant(
    test: &str,
    kind: &str,
    matches: impl Fn(&serde_json::Value) -> bool,
) -> (headwise::Model, PathBuf) {
    let (name, config) = variants()
        .into_iter()
        .find(|(_, config)| config["model_type"].as_str().unwrap().starts_with(kind) && matches(config))
        .unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("families-texts").join(test).join(name);
    write_random(&folder, &config, SEED);
    (try_load(KernelChoice::Tuned, &folder, LoadOptions::new()).unwrap(), folder)
}

#[test]
fn an_encoder_has_vectors_of_its_oracle_in_any_company() {
    let (model, folder) = variant("encoder", "moa", |config| config["task"] == "fill_mask");
    let oracle = Moa::load(&folder);
    let texts: Vec<&[u32]> = vec![&SOURCE, &SOURCE[..1], &SOURCE[2..], &SOURCE[1..3], &SOURCE];
    for step_tokens in [1, 8, 1024] {
        for pooling in [Pooling::Mean, Pooling::First, Pooling::Last] {
            let options = Embed::new().pooling(pooling).step_tokens(step_tokens);
            let found = block_on(model.embed_ids(&texts, &options)).unwrap();
            for (text, found) in texts.iter().zip(found) {
                let states = oracle.encode(text).states;
                let rows: Vec<&[f64]> = states.chunks_exact(oracle.width).collect();
                let mean = |i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
                let wanted = match pooling {
                    Pooling::First => rows[0].to_vec(),
                    Pooling::Last => rows[rows.len() - 1].to_vec(),
                    _ => (0..oracle.width).map(mean).collect(),
                };
                let worst = max_difference(&widen(&found), &wanted);
                assert!(worst < 2e-4, "{pooling:?}, steps of {step_tokens}: {worst}");
            }
        }
    }
}

#[test]
fn where_heads_choose_among_whole_texts_each_is_alone() {
    let (model, _) = variant("alone", "uoe", |_| true);
    let texts: [&[u32]; 3] = [&SOURCE, &SOURCE[..2], &SOURCE[1..]];
    let together = block_on(model.embed_ids(&texts, &Embed::new())).unwrap();
    for (text, together) in texts.iter().zip(together) {
        assert_eq!(block_on(model.embed_ids(&[text], &Embed::new())).unwrap(), [together]);
    }
}

#[test]
fn what_has_no_next_token_is_refused_by_name() {
    let refused = |model: &headwise::Model| block_on(model.score_ids(&[&[1, 2]], &Score::new())).unwrap_err();
    let cases = [("moa", "fill"), ("moa", "translate"), ("vit", "classify")];
    for (kind, task) in cases {
        let (model, _) = variant("refused", kind, |config| match task {
            "fill" => config["task"] == "fill_mask",
            "translate" => config["task"] != "fill_mask",
            _ => true,
        });
        let expected = format!("model: found one for the task {task}, expected one for the task generate");
        assert_eq!(refused(&model).to_string(), expected);
        if task != "fill" {
            let error = block_on(model.embed_ids(&[&[1, 2]], &Embed::new())).unwrap_err();
            let expected =
                format!("model: found one for the task {task}, expected one for the task generate or fill");
            assert_eq!(error.to_string(), expected);
        }
    }
    let (model, _) = variant("refused", "uoe", |_| true);
    let message = refused(&model).to_string();
    assert!(message.contains("'uoe'") && message.contains("one that can write token by token"), "{message}");
}
