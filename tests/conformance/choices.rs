//! How tokens are chosen: penalties, biases and filters, and how likely the chosen ones were; against the f64 reference of the model
//! and of each formula, token by token.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
};

use headwise::{
    Cancel, Generate, Generation, KernelChoice, LogitRows, Model, Penalties as Penalized, Run,
    SessionOptions, StopReason, Token, block_on,
};

use crate::{
    models::SHAPES,
    prose,
    reference::{
        adjust_logits::{Penalties, adjust_logits},
        jetmoe,
        sample::{Sampling, argmax, argmax_gap, sample},
        token_logprob::token_logprob,
    },
    tiny,
};

/// Ids of the tiny model's vocabulary.
const VOCAB: usize = 101;
const PROMPTS: [&[u32]; 3] = [&[3, 14, 15, 92, 65], &[58, 58, 7], &[99, 1, 20, 30, 40, 50, 60, 70]];

fn reference() -> jetmoe::JetMoe {
    jetmoe::JetMoe::load(Path::new("tests/fixtures/jetmoe_tiny"))
}

/// The reference's logits behind `ids`.
fn next_logits(reference: &jetmoe::JetMoe, ids: &[u32]) -> Vec<f64> {
    let logits = reference.forward(&mut reference.cache(ids.len()), ids).logits;
    logits[logits.len() - VOCAB..].to_vec()
}

fn generate(model: &Model, prompts: &[&[u32]], options: &Generate) -> (Generation, Vec<Token>) {
    let mut tokens = Vec::new();
    let run = model.generate_ids(prompts, options, |token| {
        tokens.push(token.clone());
        ControlFlow::Continue(())
    });
    (block_on(run).unwrap(), tokens)
}

fn greedy(most: usize) -> Generate {
    Generate::new().greedy().stop_at([]).max_new(most)
}

fn none() -> Penalties {
    Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, bias: vec![0.0; VOCAB] }
}

/// Options and what the oracle makes of them.
fn penalties() -> Vec<(Generate, Penalties)> {
    let bias = [(17, 3.0), (3, f32::NEG_INFINITY), (58, -2.5), (0, 1.0)];
    let mut biased = none();
    bias.iter().for_each(|&(id, value)| biased.bias[id as usize] = f64::from(value));
    let all = Penalties { repetition: f64::from(1.2f32), presence: 0.25, frequency: 0.5, ..biased.clone() };
    let options = || greedy(24);
    vec![
        (options().repetition_penalty(1.5), Penalties { repetition: 1.5, ..none() }),
        (options().repetition_penalty(0.75), Penalties { repetition: 0.75, ..none() }),
        (options().presence_penalty(1.5), Penalties { presence: 1.5, ..none() }),
        (options().frequency_penalty(0.5), Penalties { frequency: 0.5, ..none() }),
        (options().frequency_penalty(-0.25), Penalties { frequency: -0.25, ..none() }),
        (options().logit_bias(bias), biased),
        (
            options().repetition_penalty(1.2).presence_penalty(0.25).frequency_penalty(0.5).logit_bias(bias),
            all,
        ),
    ]
}

/// Follows what was written: each token is the oracle's, but where f32 cannot decide. Returns how many those are.
#[track_caller]
fn assert_chosen(prompt: &[u32], written: &[u32], choose: impl Fn(&[f64], &[u32]) -> (u32, f64)) -> usize {
    let reference = reference();
    let mut undecided = 0;
    for at in 0..written.len() {
        let logits = next_logits(&reference, &[prompt, &written[..at]].concat());
        let (token, gap) = choose(&logits, &written[..at]);
        if token != written[at] {
            assert!(gap < 1e-4, "token {at} of {written:?} is not {token}, by {gap}");
            undecided += 1;
        }
    }
    undecided
}

#[test]
fn penalties_choose_what_their_formulas_choose() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let plain = generate(&model, &PROMPTS, &greedy(24)).0.ids;
        for (options, penalties) in penalties() {
            let (together, _) = generate(&model, &PROMPTS, &options);
            assert_ne!(together.ids, plain, "{penalties:?} changes nothing");
            for (prompt, written) in PROMPTS.iter().zip(&together.ids) {
                let undecided = assert_chosen(prompt, written, |logits, written| {
                    let adjusted = adjust_logits(logits, &penalties, prompt, written);
                    (argmax(&adjusted), argmax_gap(&adjusted))
                });
                assert_eq!(undecided, 0, "{penalties:?}");
                // Alone and with the experts of each token, too.
                let alone = generate(&model, &[prompt], &options.clone().with_routes()).0;
                assert_eq!(alone.ids[0], *written);
            }
        }
    }
}

#[test]
fn penalties_change_what_is_drawn() {
    let model = tiny(KernelChoice::Tuned);
    let oracle = Sampling { temperature: f64::from(0.9f32), top_k: Some(20), top_p: Some(f64::from(0.9f32)) };
    for (seed, (options, penalties)) in (5..).zip(penalties()) {
        let options = options.temperature(0.9).top_k(20).top_p(0.9).seed(seed);
        let (together, _) = generate(&model, &PROMPTS, &options);
        assert_eq!(together.ids, generate(&model, &PROMPTS, &options).0.ids);
        for (sequence, (prompt, written)) in (0..).zip(PROMPTS.iter().zip(&together.ids)) {
            let undecided = assert_chosen(prompt, written, |logits, written| {
                let mut adjusted = adjust_logits(logits, &penalties, prompt, written);
                // The oracle wants numbers.
                adjusted.iter_mut().for_each(|logit| *logit = logit.max(-1e30));
                let position = (prompt.len() + written.len()) as u32;
                let drawn = sample(&adjusted, &oracle, seed, position, sequence);
                (drawn.token, drawn.gap())
            });
            assert_eq!(undecided, 0, "{penalties:?}");
        }
    }
}

/// An outsider's session, told of the penalties, writes what `generate` writes, which the tests above have against the reference.
#[test]
fn a_session_has_the_penalties_that_a_generation_has() {
    let model = tiny(KernelChoice::Tuned);
    let bias = [(17, 3.0), (3, f32::NEG_INFINITY)];
    let all = Penalized::new().repetition(1.2).presence(0.25).frequency(0.5).bias(bias);
    let options =
        greedy(12).repetition_penalty(1.2).presence_penalty(0.25).frequency_penalty(0.5).logit_bias(bias);
    let expected = generate(&model, &PROMPTS, &options).0.ids;
    block_on(async {
        let count = PROMPTS.len() as u32;
        let mut session = model.session(SessionOptions::new().sequences(count).positions(64)).unwrap();
        session.set_penalties(Some(&all), &PROMPTS).unwrap();
        let mut runs: Vec<Run<'_>> = (0..).zip(PROMPTS).map(|(of, ids)| Run::ids(of, ids)).collect();
        let mut written = vec![Vec::new(); PROMPTS.len()];
        for _ in 0..12 {
            session.forward(&runs).unwrap();
            session.sample(&headwise::Sampling::new().greedy()).unwrap();
            let ids = session.tokens().await.unwrap().wait().await.unwrap();
            written.iter_mut().zip(ids).for_each(|(written, id)| written.push(id));
            runs = (0..count).map(Run::sampled).collect();
        }
        assert_eq!(written, expected);

        // Two rows of a sequence would count for each other.
        let both = [Run::ids(0, &[5, 6]).logits(LogitRows::All)];
        session.forward(&both).unwrap();
        let error = session.sample(&headwise::Sampling::new().greedy()).unwrap_err().to_string();
        assert!(error.contains("several of sequence 0"), "{error}");
        session.set_penalties(None, &[]).unwrap();
        session.sample(&headwise::Sampling::new().greedy()).unwrap();

        let many = vec![PROMPTS[0]; PROMPTS.len() + 1];
        let error = session.set_penalties(Some(&all), &many).unwrap_err().to_string();
        assert!(error.contains("prompts"), "{error}");
        let error = session.set_penalties(Some(&Penalized::new().repetition(0.0)), &PROMPTS).unwrap_err();
        assert!(error.to_string().contains("repetition penalty"), "{error}");
    });
}

#[test]
fn no_penalty_is_no_work_and_some_are_two_dispatches_a_step() {
    let model = tiny(KernelChoice::Plain);
    let counters = |options: &Generate| generate(&model, &PROMPTS, options).0.counters;
    let plain = counters(&greedy(10));
    let neutral = greedy(10).repetition_penalty(1.0).presence_penalty(0.0).logit_bias([]);
    assert_eq!(counters(&neutral), plain);
    let some = counters(&greedy(10).presence_penalty(0.5));
    assert_eq!((some.dispatches, some.macs), (plain.dispatches + 20, plain.macs));
    for (n, more) in [(0, 10), (3, 20)] {
        assert_eq!(counters(&greedy(10).logprobs(n)).dispatches, plain.dispatches + more);
    }
}

#[test]
fn banned_tokens_never_come_and_wanted_ones_do() {
    let model = tiny(KernelChoice::Tuned);
    let allowed = [4, 8, 15, 16, 23, 42];
    let ban = |id: u32| (!allowed.contains(&id)).then_some((id, f32::NEG_INFINITY));
    let options = greedy(40).logit_bias((0..VOCAB as u32).filter_map(ban));
    for options in [options.clone(), options.temperature(1e30).top_k(None).top_p(1.0)] {
        let ids = &generate(&model, &[&[3]], &options).0.ids[0];
        assert!(ids.len() == 40 && ids.iter().all(|id| allowed.contains(id)), "{ids:?}");
    }
    let options = greedy(40).logit_bias([(77, 1e9)]);
    assert_eq!(generate(&model, &[&[3]], &options).0.ids, [[77; 40]]);
}

/// Whatever penalties, temperature and filters make of them.
#[test]
fn log_probabilities_are_those_of_the_models_own_logits() {
    let reference = reference();
    for kernels in SHAPES {
        let model = tiny(kernels);
        let penalised = greedy(12).repetition_penalty(1.3).temperature(0.7).logit_bias([(5, 9.0)]);
        for options in [
            greedy(12).logprobs(5),
            penalised.clone().logprobs(16).with_routes(),
            penalised.logprobs(0).filter_logits(|_, logits| logits[0] += 5.0),
        ] {
            let (generation, tokens) = generate(&model, &PROMPTS, &options);
            let mut checked = 0;
            for token in tokens {
                if token.prompt {
                    assert!(token.logprob.is_none() && token.top.is_empty());
                    continue;
                }
                let ids = [PROMPTS[token.sequence], &generation.ids[token.sequence]].concat();
                let logits = next_logits(&reference, &ids[..token.position]);
                let logprob = |id: u32| token_logprob(&logits, &[id])[0];
                let close = |found: f32, id: u32| (f64::from(found) - logprob(id)).abs() < 2e-4;
                assert!(close(token.logprob.unwrap(), token.id));
                let mut ranked: Vec<u32> = (0..VOCAB as u32).collect();
                ranked.sort_by(|&a, &b| logprob(b).total_cmp(&logprob(a)));
                for (top, &expected) in token.top.iter().zip(&ranked) {
                    // Neighbours may change places where they are as likely.
                    assert!((logprob(top.id) - logprob(expected)).abs() < 2e-4);
                    assert!(close(top.logprob, top.id) && top.text.is_empty());
                    checked += 1;
                }
                assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            }
            assert!([0, 3 * 12 * 5, 3 * 12 * 16].contains(&checked));
        }
    }
}

#[test]
fn the_likeliest_tokens_have_the_text_they_would_add() {
    let model = prose(KernelChoice::Tuned);
    let (prompt, tokenizer) = ("The king shall", model.tokenizer().unwrap());
    let ids = model.encode(prompt).unwrap();
    let mut tokens = Vec::new();
    let options = Generate::new().greedy().max_new(12).logprobs(8);
    let generation = block_on(model.generate(prompt, &options, |token| {
        tokens.push(token.clone());
        ControlFlow::Continue(())
    }));
    let new = generation.unwrap().ids.remove(0);
    let mut before = prompt.to_owned();
    for (at, token) in tokens.iter().enumerate() {
        assert_eq!((token.top.len(), token.top[0].id), (8, token.id));
        assert_eq!(
            (token.top[0].text.as_str(), token.top[0].logprob),
            (&token.text[..], token.logprob.unwrap())
        );
        for top in &token.top {
            let all = [&ids[..], &new[..at], &[top.id]].concat();
            assert_eq!(format!("{before}{}", top.text), tokenizer.decode(&all).unwrap());
        }
        before += &token.text;
    }
}

#[test]
fn a_filter_sees_all_logits_and_the_ids_so_far() {
    let model = tiny(KernelChoice::Tuned);
    let reference = reference();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = seen.clone();
    let options = greedy(6).filter_logits(move |ids, logits| {
        keep.lock().unwrap().push((ids.to_vec(), logits.to_vec()));
    });
    let (generation, _) = generate(&model, &PROMPTS, &options);
    assert_eq!(generation.ids, generate(&model, &PROMPTS, &greedy(6)).0.ids);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 18);
    for (call, (ids, logits)) in seen.iter().enumerate() {
        let (step, sequence) = (call / 3, call % 3);
        assert_eq!(*ids, [PROMPTS[sequence], &generation.ids[sequence][..step]].concat());
        let expected = next_logits(&reference, ids);
        assert_eq!(logits.len(), VOCAB);
        assert!(
            logits.iter().zip(&expected).all(|(found, wanted)| (f64::from(*found) - wanted).abs() < 2e-4)
        );
    }
}

#[test]
fn a_filter_chooses_as_the_gpu_would() {
    let model = tiny(KernelChoice::Tuned);
    let drawn = greedy(20).temperature(0.9).seed(11);
    // One that changes nothing changes no token, with and without all else.
    for options in
        [drawn.clone(), drawn.clone().with_routes(), drawn.clone().frequency_penalty(0.7).logprobs(2)]
    {
        let plain = generate(&model, &PROMPTS, &options).0;
        let filtered = generate(&model, &PROMPTS, &options.clone().filter_logits(|_, _| ())).0;
        assert_eq!((filtered.ids, filtered.stopped), (plain.ids, plain.stopped));
    }
    // What a bias does a filter does.
    let bias = [(17, 3.0), (3, f32::NEG_INFINITY), (58, -2.5)];
    let biased = generate(&model, &PROMPTS, &drawn.clone().logit_bias(bias)).0;
    let filtered = drawn.filter_logits(move |_, logits| {
        bias.iter().for_each(|&(id, bias)| logits[id as usize] += bias);
    });
    assert_eq!(generate(&model, &PROMPTS, &filtered).0.ids, biased.ids);
    // A grammar: the successor of the last id, whatever the model likes.
    let next = greedy(5).filter_logits(|ids, logits| {
        let next = (ids[ids.len() - 1] + 1) as usize % logits.len();
        (0..logits.len()).filter(|&id| id != next).for_each(|id| logits[id] = f32::NEG_INFINITY);
    });
    let found = generate(&model, &PROMPTS, &next).0.ids;
    assert_eq!(found, [[66, 67, 68, 69, 70], [8, 9, 10, 11, 12], [71, 72, 73, 74, 75]]);
}

#[test]
fn a_filter_may_cancel_and_is_told_what_it_did_wrong() {
    let model = tiny(KernelChoice::Tuned);
    let cancel = Cancel::new();
    let ends = cancel.clone();
    let options = greedy(20).cancel(&cancel).filter_logits(move |ids, _| {
        if ids.len() == 8 {
            ends.cancel();
        }
    });
    let (generation, tokens) = generate(&model, &[PROMPTS[0]], &options);
    assert_eq!((generation.ids[0].len(), tokens.len()), (3, 3));
    assert_eq!(generation.stopped, [StopReason::Cancelled]);
    type Change = fn(&mut [f32]);
    let wrong: [(Change, &str); 3] = [
        (
            |logits| logits[9] = f32::NAN,
            "found NaN for token 9, expected a finite number, or -inf to ban the token",
        ),
        (
            |logits| logits[0] = f32::INFINITY,
            "found inf for token 0, expected a finite number, or -inf to ban the token",
        ),
        (|logits| logits.fill(f32::NEG_INFINITY), "found -inf for every token, expected a token to choose"),
    ];
    for (change, message) in wrong {
        let options = greedy(4).filter_logits(move |ids, logits| {
            if ids.len() > 6 {
                change(logits)
            }
        });
        let run = model.generate_ids(&[PROMPTS[0]], &options, |_| ControlFlow::Continue(()));
        assert_eq!(block_on(run).unwrap_err().to_string(), format!("logit filter: {message}"));
    }
}

#[test]
fn a_filter_and_a_bias_that_ban_all_tokens_together_are_refused() {
    let model = tiny(KernelChoice::Tuned);
    let run = |low: f32, left: &'static [usize]| {
        let options = greedy(4).logit_bias([(7, low)]).filter_logits(move |_, logits| {
            (0..VOCAB).filter(|id| !left.contains(id)).for_each(|id| logits[id] = low);
        });
        block_on(model.generate_ids(&PROMPTS, &options, |_| ControlFlow::Continue(())))
    };
    for low in [f32::NEG_INFINITY, f32::MIN] {
        let message =
            "logit filter: found -inf for every token that the logit bias leaves, expected a token to choose";
        assert_eq!(run(low, &[7]).unwrap_err().to_string(), message);
        let message = "logit filter: found -inf for every token, expected a token to choose";
        assert_eq!(run(low, &[]).unwrap_err().to_string(), message);
        // One that neither bans is chosen, whatever the model likes.
        assert_eq!(run(low, &[7, 8]).unwrap().ids, [[8; 4]; 3]);
    }
}

/// However low the one token gets that is not banned, it is above those that are.
#[test]
fn a_banned_token_is_never_chosen() {
    let model = tiny(KernelChoice::Tuned);
    let run = |options: Generate| {
        block_on(model.generate_ids(&PROMPTS, &options, |_| ControlFlow::Continue(()))).unwrap().ids
    };
    for options in [greedy(8), greedy(8).temperature(1.0).seed(3)] {
        let only = |_: &_, logits: &mut [f32]| {
            (0..VOCAB).filter(|&id| id != 30).for_each(|id| logits[id] = f32::NEG_INFINITY);
            logits[30] = -3e38;
        };
        let low = options.clone().logit_bias([(30, -3e38)]).filter_logits(only);
        assert_eq!(run(low), [[30; 8]; 3]);
        let banned = (0..VOCAB as u32).filter(|&id| id != 30).map(|id| (id, f32::NEG_INFINITY));
        let worn = options.logit_bias(banned).frequency_penalty(f32::MAX).presence_penalty(f32::MAX);
        assert_eq!(run(worn), [[30; 8]; 3]);
    }
}

#[test]
fn options_out_of_range_are_named() {
    let model = tiny(KernelChoice::Tuned);
    let all = (0..VOCAB as u32).map(|id| (id, f32::NEG_INFINITY));
    for (options, message) in [
        (
            greedy(1).repetition_penalty(0.0),
            "repetition penalty: found 0, expected a finite number above 0; 1 is none",
        ),
        (
            greedy(1).repetition_penalty(-1.0),
            "repetition penalty: found -1, expected a finite number above 0; 1 is none",
        ),
        (
            greedy(1).repetition_penalty(f32::NAN),
            "repetition penalty: found NaN, expected a finite number above 0; 1 is none",
        ),
        (
            greedy(1).presence_penalty(f32::INFINITY),
            "presence penalty: found inf, expected a finite number; 0 is none",
        ),
        (
            greedy(1).frequency_penalty(f32::NAN),
            "frequency penalty: found NaN, expected a finite number; 0 is none",
        ),
        (
            greedy(1).logit_bias([(7, f32::NAN)]),
            "logit bias: found NaN for token 7, expected a finite number, or -inf to ban the token",
        ),
        (
            greedy(1).logit_bias([(7, f32::INFINITY)]),
            "logit bias: found inf for token 7, expected a finite number, or -inf to ban the token",
        ),
        (
            greedy(1).logit_bias([(101, 1.0)]),
            "logit bias: found one for token 101, expected a token below the vocabulary size 101",
        ),
        (greedy(1).logit_bias(all), "logit bias: found -inf for every token, expected a token to choose"),
        (greedy(1).logprobs(17), "logprobs: found 17, expected at most 16"),
    ] {
        let run = model.generate_ids(&PROMPTS, &options, |_| ControlFlow::Continue(()));
        assert_eq!(block_on(run).unwrap_err().to_string(), message);
    }
    // Without a tokenizer nobody knows what a stop string is.
    let stops = greedy(1).stop(["a"]);
    let run = model.generate_ids(&PROMPTS, &stops, |_| ControlFlow::Continue(()));
    assert!(block_on(run).unwrap_err().to_string().contains("tokenizer.json"));
}
