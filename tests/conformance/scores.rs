//! What a model says of texts: log-probabilities token by token, and vectors; against transformers' logits and the f64
//! reference, in steps of any size, whoever shares them.

use std::path::Path;

use headwise::{
    Cancel, Embed, Error, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Pooling, Run, Score,
    SessionOptions, Source, block_on,
};

use crate::{
    PROSE_LOGITS,
    models::{SHAPES, ids, numbers},
    prose, prose_prompt,
    reference::{jetmoe, max_difference, token_logprob::token_logprob, widen},
    tiny,
};

/// `ln p` of all ids but the first, by the logits of all but the last.
fn expected_logprobs(logits: &[f64], ids: &[u32]) -> Vec<f64> {
    if ids.len() < 2 {
        return Vec::new();
    }
    let vocab = logits.len() / ids.len();
    token_logprob(&logits[..logits.len() - vocab], &ids[1..])
}

#[track_caller]
fn close(found: &[f32], expected: &[f64], bound: f64, what: &str) {
    let worst = max_difference(&widen(found), expected);
    println!("{what}: differ by {worst:.1e}");
    assert!(worst < bound, "{what}: {worst}");
}

/// Texts of the tiny model's vocabulary, of all lengths up to its context of 64; of some there is next to nothing.
fn texts(count: u32) -> Vec<Vec<u32>> {
    let text = |text: u32| {
        let length = [0, 1, 2, 64, 1 + (text * 29 + 3) % 64][if text < 4 { text as usize } else { 4 }];
        (0..length).map(|i| (text * text * 13 + i * i * 31 + 7 * i + 3) % 101).collect()
    };
    (0..count).map(text).collect()
}

fn slices(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

fn reference() -> jetmoe::JetMoe {
    jetmoe::JetMoe::load(Path::new("tests/fixtures/jetmoe_tiny"))
}

fn run(reference: &jetmoe::JetMoe, ids: &[u32]) -> jetmoe::Output {
    reference.forward(&mut reference.cache(ids.len()), ids)
}

#[test]
fn log_probabilities_are_those_of_the_logits_of_transformers() {
    let expected = jetmoe::read_json(Path::new("tests/fixtures/jetmoe_tiny/expected.json"));
    let prompt = ids(&numbers(&expected["ids"]));
    let wanted = expected_logprobs(&numbers(&expected["logits"]), &prompt);
    for kernels in SHAPES {
        let model = tiny(kernels);
        for step_tokens in [1, 3, 4, 5, 1024] {
            let options = Score::new().step_tokens(step_tokens);
            let scored = block_on(model.score_ids(&[&prompt], &options)).unwrap().remove(0);
            assert_eq!(scored.ids, prompt);
            close(&scored.logprobs, &wanted, 2e-4, &format!("{kernels:?}, steps of {step_tokens}"));
            let sum: f64 = wanted.iter().sum();
            assert!((scored.sum() - sum).abs() < 2e-4 * wanted.len() as f64);
            let perplexity = (-sum / wanted.len() as f64).exp();
            assert!((scored.perplexity().unwrap() / perplexity - 1.0).abs() < 2e-4);
        }
    }
}

#[test]
fn prose_is_scored_as_by_the_logits_of_transformers() {
    let tensors = jetmoe::read_safetensors(Path::new("models/prose/reference.safetensors"));
    let texts = jetmoe::read_json(Path::new("models/prose/reference.json"));
    let model = prose(KernelChoice::Tuned);
    let of = |prompt: usize| texts["prompts"][prompt]["text"].as_str().unwrap();
    let scored = block_on(model.score(&(0..7).map(of).collect::<Vec<_>>(), &Score::new())).unwrap();
    for (prompt, scored) in scored.iter().enumerate() {
        let expected = prose_prompt(&tensors, prompt);
        let ids = ids(&expected("ids"));
        assert_eq!(scored.ids, ids);
        if PROSE_LOGITS.contains(&prompt) {
            close(&scored.logprobs, &expected_logprobs(&expected("logits"), &ids), 2e-3, of(prompt));
        }
    }
}

#[test]
fn a_text_is_scored_alike_in_any_company_and_steps_of_any_size() {
    let (reference, texts) = (reference(), texts(150));
    let wanted: Vec<Vec<f64>> =
        texts.iter().map(|ids| expected_logprobs(&run(&reference, ids).logits, ids)).collect();
    let tokens: usize = texts.iter().map(Vec::len).sum();
    assert!(tokens > 4 * 1024, "{tokens} tokens");
    let whole = SHAPES.map(|kernels| (kernels, None));
    let cut = [7, 64, 300].map(|step_tokens| (KernelChoice::Tuned, Some(step_tokens)));
    for (kernels, step_tokens) in whole.into_iter().chain(cut) {
        let options = step_tokens.map_or(Score::new(), |tokens| Score::new().step_tokens(tokens));
        let scored = block_on(tiny(kernels).score_ids(&slices(&texts), &options)).unwrap();
        assert_eq!(scored.len(), texts.len());
        let found: Vec<f32> = scored.iter().flat_map(|scored| scored.logprobs.clone()).collect();
        close(&found, &wanted.concat(), 2e-4, &format!("{kernels:?}, steps of {step_tokens:?}"));
        for (scored, wanted) in scored.iter().zip(&wanted) {
            assert_eq!(scored.logprobs.len(), wanted.len());
            assert_eq!(scored.perplexity().is_none(), wanted.is_empty());
        }
    }
    assert!(block_on(tiny(KernelChoice::Plain).score_ids(&[], &Score::new())).unwrap().is_empty());
}

#[test]
fn four_bytes_of_each_token_come_back() {
    let model = tiny(KernelChoice::Tuned);
    let mut session = model.session(SessionOptions::new().logit_rows(5)).unwrap();
    let prompt = [1, 7, 42, 99, 3];
    let rows = [0, 2, 4];
    session.forward(&[Run::ids(0, &prompt).logits(headwise::LogitRows::At(&rows))]).unwrap();
    let found = block_on(async { session.token_logprobs(&[7, 99, 58]).await?.wait().await }).unwrap();
    let logits = run(&reference(), &prompt).logits;
    let chosen: Vec<f64> =
        rows.iter().flat_map(|&row| logits[row as usize * 101..][..101].to_vec()).collect();
    close(&found, &token_logprob(&chosen, &[7, 99, 58]), 2e-4, "three rows");
    // What was looked up disturbs no choice, and no step to come.
    session.sample(&headwise::Sampling::new().greedy()).unwrap();
    session.forward(&[Run::sampled(0)]).unwrap();
    for (targets, message) in [
        (
            &[1, 2][..],
            "targets: found 2, expected one for each of the last step's 1 rows of logits, at least one",
        ),
        (&[101], "token id: found 101, expected below the vocabulary size 101"),
    ] {
        assert_eq!(block_on(session.token_logprobs(targets)).err().unwrap().to_string(), message);
    }
    assert_eq!(block_on(async { session.token_logprobs(&[5]).await?.wait().await }).unwrap().len(), 1);
}

#[test]
fn long_texts_are_refused_by_number_or_read_in_pieces() {
    let (reference, model) = (reference(), tiny(KernelChoice::Tuned));
    let mut texts = texts(6);
    texts[4] = (0..200).map(|i| (i * i * 31 + 7 * i + 3) % 101).collect();
    let error = block_on(model.score_ids(&slices(&texts), &Score::new())).unwrap_err();
    assert_eq!(error.to_string(), "text: found 200 tokens in text 4, expected at most the model's 64");
    let error = block_on(model.embed_ids(&slices(&texts)[1..], &Embed::new())).unwrap_err();
    assert_eq!(error.to_string(), "text: found 200 tokens in text 3, expected at most the model's 64");

    // Pieces of 64 tokens, each on its own; the last token of one says how likely the first of the next is.
    let wanted: Vec<f64> = (0..199)
        .step_by(64)
        .flat_map(|start| {
            let end = 199.min(start + 64);
            let logits = run(&reference, &texts[4][start..end]).logits;
            token_logprob(&logits, &texts[4][start + 1..=end])
        })
        .collect();
    for step_tokens in [50, 1024] {
        let options = Score::new().cut(true).step_tokens(step_tokens);
        let scored = block_on(model.score_ids(&slices(&texts), &options)).unwrap();
        close(&scored[4].logprobs, &wanted, 2e-4, "in pieces");
        assert_eq!(scored[5].logprobs.len(), texts[5].len() - 1);
    }
    let vectors = block_on(model.embed_ids(&slices(&texts)[4..], &Embed::new().cut(true))).unwrap();
    close(&vectors[0], &pooled(&run(&reference, &texts[4][..64]).hidden, Pooling::Mean), 2e-4, "its start");
}

/// The mean, the last or the first of rows that are 32 wide.
fn pooled(states: &[f64], pooling: Pooling) -> Vec<f64> {
    let rows: Vec<&[f64]> = states.chunks_exact(32).collect();
    match pooling {
        Pooling::Last => rows[rows.len() - 1].to_vec(),
        Pooling::First => rows[0].to_vec(),
        _ => (0..32).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64).collect(),
    }
}

#[test]
fn vectors_are_the_pooled_hidden_states_of_the_reference() {
    let (reference, texts) = (reference(), texts(60).split_off(1));
    let states: Vec<Vec<f64>> = texts.iter().map(|ids| run(&reference, ids).hidden).collect();
    for kernels in [KernelChoice::Plain, KernelChoice::Broadcast] {
        let model = tiny(kernels);
        for pooling in [Pooling::Mean, Pooling::Last, Pooling::First] {
            for step_tokens in [5, 64, 1024] {
                let options = Embed::new().pooling(pooling).step_tokens(step_tokens);
                let what = format!("{kernels:?}, {pooling:?}, steps of {step_tokens}");
                let found = block_on(model.embed_ids(&slices(&texts), &options)).unwrap();
                let wanted: Vec<Vec<f64>> = states.iter().map(|states| pooled(states, pooling)).collect();
                close(&found.concat(), &wanted.concat(), 2e-4, &what);
                let unit = block_on(model.embed_ids(&slices(&texts), &options.normalize(true))).unwrap();
                for (unit, wanted) in unit.iter().zip(&wanted) {
                    let length = wanted.iter().map(|value| value * value).sum::<f64>().sqrt();
                    let wanted: Vec<f64> = wanted.iter().map(|value| value / length).collect();
                    assert!(max_difference(&widen(unit), &wanted) < 2e-4);
                }
            }
        }
    }
    let model = tiny(KernelChoice::Tuned);
    assert!(block_on(model.embed_ids(&[], &Embed::new())).unwrap().is_empty());
    let error = block_on(model.embed_ids(&[&[1], &[]], &Embed::new())).unwrap_err();
    assert_eq!(error.to_string(), "text: found no tokens in text 1, expected at least one");
}

#[test]
fn a_session_of_hidden_states_has_them_and_no_logits() {
    let model = tiny(KernelChoice::Tuned);
    let options = || SessionOptions::new().sequences(2).logit_rows(8);
    let mut session = model.session(options().hidden()).unwrap();
    // 101 logits take 104 floats of a row.
    assert_eq!(model.session(options()).unwrap().bytes() - session.bytes(), 8 * 4 * 104);
    let prompts: [&[u32]; 2] = [&[1, 7, 42], &[99, 3]];
    let all = headwise::LogitRows::All;
    session.forward(&[Run::ids(0, prompts[0]).logits(all), Run::ids(1, prompts[1]).logits(all)]).unwrap();
    let reference = reference();
    for (sequence, prompt) in (0..).zip(prompts) {
        let found = block_on(session.hidden(sequence)).unwrap();
        close(&found, &run(&reference, prompt).hidden, 2e-4, "hidden states");
    }
    let none = "session: found one of hidden states, expected one with logits";
    for error in [
        session.sample(&headwise::Sampling::new()).unwrap_err(),
        block_on(session.logits(0)).unwrap_err(),
        block_on(session.token_logprobs(&[1; 5])).err().unwrap(),
    ] {
        assert_eq!(error.to_string(), none);
    }
    let mut session = model.session(options()).unwrap();
    session.forward(&[Run::ids(0, prompts[0])]).unwrap();
    let error = block_on(session.hidden(0)).unwrap_err().to_string();
    assert_eq!(error, "session: found one with logits, expected one of SessionOptions::hidden");
}

#[test]
fn where_memory_is_short_steps_are_smaller() {
    let texts = texts(100);
    let load = |limit: u64| {
        let gpu = GpuOptions::new().default_limits(true).kernels(KernelChoice::Tuned).memory_limit(limit);
        let gpu = block_on(Gpu::new(gpu)).unwrap();
        let source = Source::folder("tests/fixtures/jetmoe_tiny");
        block_on(Model::load(&gpu, &source, LoadOptions::new())).unwrap()
    };
    let roomy = load(1 << 30);
    let steps = |model: &Model, tokens: u32| {
        let sequences = SessionOptions::new().sequences(tokens.min(64)).positions(63).reserve(63);
        model.session(sequences.step_tokens(tokens).logit_rows(tokens)).map(|session| session.bytes())
    };
    // Room for steps of 64 tokens.
    let tight = load(roomy.gpu().allocated_bytes() + steps(&roomy, 64).unwrap() + 1000);
    assert!(matches!(steps(&tight, 1024), Err(Error::TooLarge { .. })));
    let [all, few] =
        [&roomy, &tight].map(|model| block_on(model.score_ids(&slices(&texts), &Score::new())).unwrap());
    for (all, few) in all.iter().zip(&few) {
        assert!(max_difference(&widen(&all.logprobs), &widen(&few.logprobs)) < 2e-4);
    }
    assert_eq!(block_on(tight.embed_ids(&slices(&texts)[1..], &Embed::new())).unwrap().len(), 99);
    // And where there is none for one token, that is said with numbers.
    let none = load(roomy.gpu().allocated_bytes() + 1000);
    let error = block_on(none.score_ids(&slices(&texts), &Score::new())).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn who_cancels_has_the_texts_that_were_done() {
    let model = tiny(KernelChoice::Tuned);
    let texts = texts(20);
    let cancel = Cancel::new();
    cancel.cancel();
    // The first two texts have nothing to score.
    let scored = block_on(model.score_ids(&slices(&texts), &Score::new().cancel(&cancel))).unwrap();
    assert_eq!(scored.iter().map(|scored| &scored.ids).collect::<Vec<_>>(), texts.iter().collect::<Vec<_>>());
    assert!(scored.iter().enumerate().all(|(text, scored)| scored.is_whole() == (text < 2)));
    assert!(scored.iter().all(|scored| scored.logprobs.is_empty()));
    let vectors = block_on(model.embed_ids(&slices(&texts)[1..], &Embed::new().cancel(&cancel))).unwrap();
    assert_eq!(vectors, vec![Vec::<f32>::new(); 19]);

    // In its midst: whole texts are those of a run that was not cancelled, the others a start of them, and each whole one that
    // none before it keeps back was shown.
    let all = block_on(model.score_ids(&slices(&texts), &Score::new().step_tokens(16))).unwrap();
    let (cancel, mut shown) = (Cancel::new(), Vec::new());
    let options = Score::new().step_tokens(16).cancel(&cancel);
    let show = |scored: &headwise::Scored| {
        shown.push(scored.clone());
        if shown.len() == 5 {
            cancel.cancel();
        }
    };
    let some = block_on(model.score_each(&slices(&texts), &options, show)).unwrap();
    assert!(shown.len() >= 5 && shown.len() < 20 && shown == all[..shown.len()]);
    assert_eq!((some.len(), some.iter().take_while(|scored| scored.is_whole()).count()), (20, shown.len()));
    for (some, all) in some.iter().zip(&all) {
        assert_eq!(some.ids, all.ids);
        assert_eq!(some.logprobs, all.logprobs[..some.logprobs.len()]);
    }
    let error = block_on(model.score_ids(&[&[1, 101]], &Score::new())).unwrap_err().to_string();
    assert_eq!(error, "token id: found 101, expected below the vocabulary size 101");
    let error = block_on(model.score_ids(&[&[1, 2]], &Score::new().step_tokens(0))).unwrap_err().to_string();
    assert_eq!(error, "tokens of a step: found 0, expected at least 1");
}
