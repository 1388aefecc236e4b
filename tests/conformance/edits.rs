//! Edits change what they name, as the reference of a model with other weights says, and nothing else.

use std::ops::ControlFlow;

use headwise::{
    Edit, Edits, Embed, Error, Generate, KernelChoice, LogitRows, Logits, Model, Observe, Run, Score,
    Session, SessionOptions, block_on,
    probes::{Address, Change, Positions, Vectors, What},
};

use crate::{
    difference,
    models::SHAPES,
    reference::{jetmoe::JetMoe, widen},
    tiny,
};

const PROMPT: [u32; 11] = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46];

fn edits(texts: &[&str]) -> Edits {
    texts.iter().fold(Edits::new(), |edits, text| edits.with(text.parse().unwrap()))
}

fn reference() -> JetMoe {
    JetMoe::load("tests/fixtures/jetmoe_tiny".as_ref())
}

fn logits(model: &Model, step_tokens: usize) -> Logits {
    block_on(model.logits_in_steps(&[&PROMPT], step_tokens)).unwrap().remove(0)
}

/// Head experts, heads of each, MLP experts: what the tests below count on.
fn sizes(model: &Model) -> (u32, u32, u32) {
    let info = model.info();
    (info.attention.experts, info.attention.heads_per_expert, info.mlp.experts)
}

#[test]
fn no_edits_are_no_work_and_edits_without_effect_change_no_bit() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let greedy = Generate::new().greedy().stop_at([]).max_new(10);
        let run = |model: &Model| {
            block_on(model.generate_ids(&[&PROMPT, &PROMPT[..3]], &greedy, |_| ControlFlow::Continue(())))
                .unwrap()
        };
        let plain = run(&model);
        let none = run(&model.edited(&Edits::new()).unwrap());
        assert_eq!((&none.ids, none.counters), (&plain.ids, plain.counters));
        let neutral = [
            "L*H*:scale=1",
            "L*A*:bias=0",
            "L*H*:uniform=0",
            "L*E*:scale=1",
            "L1A0@1000..2000:off",
            "L0E1@99:masked",
        ];
        let neutral = model.edited(&edits(&neutral)).unwrap();
        for step_tokens in [1, 4, 64] {
            let (found, expected) = (logits(&neutral, step_tokens), logits(&model, step_tokens));
            assert_eq!(found.values, expected.values, "{kernels:?}, steps of {step_tokens}");
            assert_eq!(found.routes, expected.routes);
        }
        assert_eq!(run(&neutral).ids, plain.ids);
    }
}

/// Multiplies columns of an output projection `[E, D, inner]`.
fn scale(output: &mut [f64], shape: [usize; 2], expert: usize, columns: std::ops::Range<usize>, by: f64) {
    let [width, inner] = shape;
    for row in output[expert * width * inner..(expert + 1) * width * inner].chunks_exact_mut(inner) {
        row[columns.clone()].iter_mut().for_each(|weight| *weight *= by);
    }
}

#[test]
fn a_scaled_output_is_one_of_scaled_weights() {
    let mut reference = reference();
    let (width, dim) = (reference.width, reference.head_dim);
    let inner = reference.kv_heads * dim;
    let heads = reference.kv_heads;
    // Head 1 of expert 2 in layer 0; all heads of expert 1 in layer 1; expert 3 of the MLP in layer 1, twice.
    let one = 2 * heads + 1;
    let texts = [
        format!("L0H{one}:scale=-0.5"),
        "L1A1:scale=0".into(),
        "L1E3:scale=4".into(),
        "L1E3:scale=0.75".into(),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    scale(&mut reference.layers[0].attention.output, [width, inner], 2, dim..2 * dim, -0.5);
    scale(&mut reference.layers[1].attention.output, [width, inner], 1, 0..inner, 0.0);
    let mlp = &mut reference.layers[1].mlp;
    let hidden = mlp.output.len() / mlp.router.len();
    scale(&mut mlp.output, [width, hidden], 3, 0..hidden, 3.0);
    let wanted = reference.forward(&mut reference.cache(PROMPT.len()), &PROMPT).logits;
    for kernels in SHAPES {
        let model = tiny(kernels);
        let edited = model.edited(&edits(&texts)).unwrap();
        for step_tokens in [1, 3, 64] {
            let worst = difference(&logits(&edited, step_tokens), &wanted);
            assert!(worst < 2e-4, "{kernels:?}, steps of {step_tokens}: {worst:e}");
        }
        assert!(difference(&logits(&model, 64), &wanted) > 1e-2, "the edits change something");
    }
}

#[test]
fn what_a_scale_makes_too_large_is_an_error_that_names_the_edits() {
    let greedy = Generate::new().greedy().stop_at([]).max_new(3);
    for kernels in SHAPES {
        let model = tiny(kernels);
        for text in ["L*H*:scale=1e30", "L0H*:scale=-3e38", "L1A*:scale=1e20", "L0E*:scale=1e30"] {
            let edited = model.edited(&edits(&[text])).unwrap();
            let errors = [
                block_on(edited.logits_in_steps(&[&PROMPT], 3)).unwrap_err(),
                block_on(edited.generate_ids(&[&PROMPT], &greedy, |_| ControlFlow::Continue(())))
                    .unwrap_err(),
                block_on(edited.score_ids(&[&PROMPT], &Score::new())).unwrap_err(),
                block_on(edited.embed_ids(&[&PROMPT], &Embed::new())).unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, Error::NotFinite { .. }), "{kernels:?}, {text}: {error}");
                assert!(error.to_string().contains("edits scale them too far"), "{error}");
            }
        }
        // Far out, and a number.
        let large = model.edited(&edits(&["L0H*:scale=1e6", "L1E*:scale=-1e6"])).unwrap();
        assert!(logits(&large, 64).values.iter().all(|logit| logit.is_finite()));
        assert_eq!(logits(&large, 1).values.len(), PROMPT.len() * model.info().vocab as usize);
    }
}

/// A head without a query looks at all keys alike.
#[test]
fn a_uniform_head_is_one_without_a_query() {
    let mut reference = reference();
    let (width, dim, heads) = (reference.width, reference.head_dim, reference.kv_heads);
    let rows = |expert: usize, head: usize| {
        let first = (expert * heads + head) * dim * width;
        first..first + dim * width
    };
    reference.layers[0].attention.input[rows(2, 1)].fill(0.0);
    for expert in [0, 3] {
        (0..heads).for_each(|head| reference.layers[1].attention.input[rows(expert, head)].fill(0.0));
    }
    let wanted = reference.forward(&mut reference.cache(PROMPT.len()), &PROMPT).logits;
    let one = format!("L0H{}:uniform", 2 * heads + 1);
    for kernels in SHAPES {
        let edited = tiny(kernels).edited(&edits(&[&one, "L1A0:uniform", "L1A3:uniform=1"])).unwrap();
        for step_tokens in [1, 3, 64] {
            let worst = difference(&logits(&edited, step_tokens), &wanted);
            assert!(worst < 2e-4, "{kernels:?}, steps of {step_tokens}: {worst:e}");
        }
    }
}

/// Keys, or queries, of nothing make all keys alike; values of nothing are nothing.
#[test]
fn queries_keys_and_values_are_edited_before_they_are_used() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let run = |texts: &[&str], most| logits(&model.edited(&edits(texts)).unwrap(), most);
        for most in [1, 3, 64] {
            let uniform = widen(&run(&["L0H*:uniform"], most).values);
            for text in ["L0H*:k.scale=0", "L0H*:q.scale=0"] {
                let worst = difference(&run(&[text], most), &uniform);
                assert!(worst < 2e-4, "{kernels:?}, {text}, steps of {most}: {worst:e}");
            }
            let nothing = widen(&run(&["L*H*:scale=0"], most).values);
            let worst = difference(&run(&["L*H*:v.scale=0"], most), &nothing);
            assert!(worst < 2e-4, "{kernels:?}, values, steps of {most}: {worst:e}");
        }
    }
}

/// A run's own values put back are its bits, and those of another run behind the last layer are the other's logits.
#[test]
fn values_of_a_trace_are_put_into_another_run() {
    let other: Vec<u32> = PROMPT.iter().map(|id| id + 1).collect();
    let parts = ["q", "k", "v", "z"].map(|what| format!("L*H*:{what}"));
    let layers = ["L*:resid-mid".to_owned(), "L*:resid-post".to_owned()];
    for kernels in SHAPES {
        let model = tiny(kernels);
        let plain = logits(&model, 64);
        for text in parts.iter().chain(&layers) {
            let observe = Observe::new().capture(text.parse().unwrap());
            let own = block_on(model.trace(&[&PROMPT], &observe)).unwrap();
            let edits: Edits = own.recorded.iter().flat_map(|one| one.edits(0, 1.0)).collect();
            assert!(!edits.is_empty());
            let edited = model.edited(&edits).unwrap();
            assert_eq!(logits(&edited, 64).values, plain.values, "{kernels:?}, {text}");
            let theirs = block_on(model.trace(&[&other], &observe)).unwrap();
            let edits: Edits = theirs.recorded.iter().flat_map(|one| one.edits(0, 1.0)).collect();
            let patched = logits(&model.edited(&edits).unwrap(), 64);
            assert_ne!(patched.values, plain.values, "{kernels:?}, {text}");
            if text == "L*:resid-post" {
                let expected = block_on(model.logits(&[&other])).unwrap().remove(0);
                assert_eq!(patched.values, expected.values, "{kernels:?}");
            }
        }
        // What is added to the stream behind the last layer is added to what the output head reads.
        let last = model.info().layers - 1;
        let observe = Observe::new().capture(format!("L{last}:resid-post").parse().unwrap());
        let [own, theirs] = [&PROMPT[..], &other].map(|ids| block_on(model.trace(&[ids], &observe)).unwrap());
        let rows = 0..PROMPT.len();
        let moved = |row: usize| {
            let pairs = own.recorded[0].at(row, 0).iter().zip(theirs.recorded[0].at(row, 0));
            pairs.map(|(own, theirs)| theirs - own).collect()
        };
        let change = Change::Add { scale: 1.0, vector: Vectors::Each(rows.map(moved).collect()) };
        let edit = Edit::new(Address::layer(last), change).of(What::ResidPost);
        let edit = edit.positions(Positions::Range(0, PROMPT.len() as u32));
        let found = logits(&model.edited(&Edits::new().with(edit)).unwrap(), 64);
        let expected = block_on(model.logits(&[&other])).unwrap().remove(0);
        assert!(difference(&found, &widen(&expected.values)) < 2e-4, "{kernels:?}");
    }
}

#[test]
fn vectors_that_do_not_fit_are_refused() {
    let model = tiny(KernelChoice::Tuned);
    let edit = |address: Address, what: What, length: usize| {
        let change = Change::Mix { part: 1.0, with: Vectors::One(vec![0.0; length]) };
        model.edited(&Edits::new().with(Edit::new(address, change).of(what))).map(|_| ())
    };
    let dim = reference().head_dim;
    edit(Address::head(0, 0), What::Z, dim).unwrap();
    for (address, what, length, part) in [
        (Address::head(0, 0), What::Z, dim + 1, "a vector of"),
        (Address::layer(1), What::ResidPost, 3, "a vector of 3 numbers"),
        (Address::head(0, 999), What::K, dim, "key/value heads"),
        (Address::layer(9), What::ResidMid, dim, "layer 9"),
    ] {
        let error = edit(address, what, length).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Where all heads look at their own token alone, it is as if there were no others.
#[test]
fn tokens_that_see_themselves_alone_are_alone() {
    let reference = reference();
    let alone = |id: &u32| reference.forward(&mut reference.cache(1), &[*id]).logits;
    let wanted: Vec<f64> = PROMPT.iter().flat_map(alone).collect();
    for kernels in SHAPES {
        let edited = tiny(kernels).edited(&edits(&["L*H*:identity"])).unwrap();
        for step_tokens in [1, 64] {
            let worst = difference(&logits(&edited, step_tokens), &wanted);
            assert!(worst < 2e-4, "{kernels:?}, steps of {step_tokens}: {worst:e}");
        }
    }
}

#[test]
fn choices_are_edited_and_counted() {
    let model = tiny(KernelChoice::Tuned);
    let plain = logits(&model, 64).routes;
    let used = |layer: usize, expert: u32| {
        let has =
            |at: &usize| plain[*at].layers[layer].attention.iter().any(|choice| choice.expert == expert);
        (0..PROMPT.len()).filter(has).count() as u32
    };
    // In the first layer alone, whose input no edit changes.
    for expert in 0..sizes(&model).0 {
        for (change, counted) in [
            ("off", used(0, expert)),
            ("masked", used(0, expert)),
            ("forced", PROMPT.len() as u32 - used(0, expert)),
        ] {
            let edits = edits(&[&format!("L0A{expert}:{change}")]);
            let found = logits(&model.edited(&edits).unwrap(), 64).routes;
            for (found, plain) in found.iter().zip(&plain) {
                let (found, plain) = (&found.layers[0].attention, &plain.layers[0].attention);
                let gate = found.iter().find(|choice| choice.expert == expert).map(|choice| choice.gate);
                match change {
                    "off" => assert!(gate.is_none_or(|gate| gate == 0.0)),
                    "masked" => assert_eq!(gate, None),
                    _ => assert!(gate.is_some_and(|gate| gate > 0.0)),
                }
                let sum: f32 = found.iter().map(|choice| choice.gate).sum();
                assert!((sum - 1.0).abs() < 1e-6);
                let had = plain.iter().any(|choice| choice.expert == expert);
                if had == (change == "forced") {
                    let sorted = |of: &[headwise::Choice]| {
                        let mut of: Vec<_> = of.iter().map(|choice| (choice.expert, choice.gate)).collect();
                        of.sort_by_key(|choice| choice.0);
                        of
                    };
                    let close = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6;
                    assert!(sorted(found).iter().zip(&sorted(plain)).all(close), "{found:?}, {plain:?}");
                }
            }
            block_on(async {
                let mut session = model.session(SessionOptions::new().positions(16)).unwrap();
                session.set_edits(&edits).unwrap();
                session.forward(&[Run::ids(0, &PROMPT)]).unwrap();
                assert_eq!(session.edits_applied().await.unwrap(), [counted], "{edits:?}");
            });
        }
    }
}

#[test]
fn positions_are_those_of_the_sequence_in_prompts_and_in_decoding() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let edited =
            model.edited(&edits(&["L0H*@4..6:scale=0", "L1A*@7,9:scale=2", "L1E0@3:masked"])).unwrap();
        let (whole, single) = (logits(&edited, 64), logits(&edited, 1));
        let plain = logits(&model, 64);
        let vocab = whole.vocab;
        let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest(&whole.values, &single.values) < 2e-4, "{kernels:?}");
        // What lies before the first edited position is as it was.
        assert_eq!(whole.values[..3 * vocab], plain.values[..3 * vocab]);
        assert!(largest(&whole.values[4 * vocab..5 * vocab], &plain.values[4 * vocab..5 * vocab]) > 1e-3);
    }
}

#[test]
fn a_session_takes_edits_on_and_off() {
    let model = tiny(KernelChoice::Tuned);
    block_on(async {
        let mut session = model.session(SessionOptions::new().positions(32)).unwrap();
        let mut next = async |edits: &Edits| {
            session.rewind(0, 0).unwrap();
            session.set_edits(edits).unwrap();
            session.forward(&[Run::ids(0, &PROMPT)]).unwrap();
            session.logits(0).await.unwrap()
        };
        let plain = next(&Edits::new()).await;
        let edited = next(&edits(&["L*H*:scale=0"])).await;
        assert_ne!(plain, edited);
        assert_eq!(next(&Edits::new()).await, plain);
    });
}

/// What was read under some edits, or none, goes on under those of the session that it comes to, as if they had been set then.
#[test]
fn a_saved_sequence_keeps_no_edits() {
    let model = tiny(KernelChoice::Tuned);
    let plans = [Edits::new(), edits(&["L*H*:scale=0.5"]), edits(&["L*A0:masked"])];
    let (before, after) = PROMPT.split_at(6);
    for (first, second) in [(0, 1), (1, 0), (1, 2)] {
        block_on(async {
            let session = |edits: &Edits| {
                let options = SessionOptions::new().positions(16).logit_rows(5);
                model.edited(edits).unwrap().session(options).unwrap()
            };
            let mut saving = session(&plans[first]);
            saving.forward(&[Run::ids(0, before)]).unwrap();
            let saved = saving.save(0).await.unwrap();
            let mut restored = session(&plans[second]);
            restored.restore(0, &saved).unwrap();
            let next = async |session: &mut Session| {
                session.forward(&[Run::ids(0, after).logits(LogitRows::All)]).unwrap();
                session.logits(0).await.unwrap()
            };
            let found = next(&mut restored).await;
            saving.set_edits(&plans[second]).unwrap();
            assert_eq!(found, next(&mut saving).await, "{first}, {second}");
            // Another text than under one plan from start to end.
            for plan in [first, second] {
                let mut whole = session(&plans[plan]);
                whole.forward(&[Run::ids(0, before)]).unwrap();
                assert_ne!(found, next(&mut whole).await, "{first}, {second}, {plan}");
            }
        });
    }
}

#[test]
fn recorded_choices_are_taken_again() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let other: Vec<u32> = PROMPT.iter().map(|id| (id * 7 + 1) % 101).collect();
        let routes_of = |ids: &[u32]| block_on(model.logits(&[ids])).unwrap().remove(0).routes;
        let (own, foreign) = (routes_of(&PROMPT), routes_of(&other));
        block_on(async {
            let mut session =
                model.session(SessionOptions::new().sequences(2).positions(16).logit_rows(11)).unwrap();
            let mut run = async |own: &[headwise::TokenRoutes], steps: &[usize]| {
                session.rewind(1, 0).unwrap();
                session.replay(1, own).unwrap();
                let (mut logits, mut routes, mut from) = (Vec::new(), Vec::new(), 0);
                for &step in steps {
                    let ids = &PROMPT[from..from + step];
                    session.forward(&[Run::ids(1, ids).logits(LogitRows::All)]).unwrap();
                    logits.extend(session.logits(1).await.unwrap());
                    routes.extend(session.routes().await.unwrap().iter());
                    from += step;
                }
                (logits, routes)
            };
            for steps in [&[11][..], &[6, 1, 4], &[1; 11]] {
                let plain = run(&[], steps).await;
                let replayed = run(&plain.1, steps).await;
                assert_eq!(replayed, plain, "{kernels:?}, {steps:?}");
                // Another text's, for its first tokens; then they choose by themselves.
                let forced = run(&foreign[..5], steps).await;
                assert_eq!(forced.1[..5], foreign[..5]);
                assert_ne!(forced.0, plain.0);
            }
            assert_eq!(run(&[], &[11]).await.1, own);
            let mut short = own.clone();
            short[2].layers.truncate(1);
            let mut wrong = own.clone();
            wrong[3].layers[1].mlp = vec![headwise::Choice::new(99, 1.0)];
            for (routes, part) in
                [(short, "1 layers at token 2"), (wrong, "expert 99 with gate 1 in layer 1 at token 3")]
            {
                let error = session.replay(0, &routes).unwrap_err().to_string();
                assert!(error.contains(part), "{error}");
            }
        });
    }
}

#[test]
fn what_a_model_does_not_have_is_refused_by_name() {
    let model = tiny(KernelChoice::Tuned);
    let (experts, heads, mlp) = sizes(&model);
    let all = experts * heads;
    let many = vec!["L0H0:scale=1"; 257];
    let error = model.edited(&edits(&many)).unwrap_err().to_string();
    assert!(error.contains("257 of one head or expert"), "{error}");
    for (text, part) in [
        ("L2H0:scale=0".to_owned(), "layer 2 in L2H0:scale=0, expected one below the 2".to_owned()),
        (format!("L0H{all}:scale=0"), format!("head {all} of layer 0")),
        (format!("L1A{experts}:off"), format!("head expert {experts} of layer 1")),
        (format!("L*E{mlp}:off"), format!("one below its {mlp} experts")),
        ("encoder.L0H0:scale=0".to_owned(), "an encoder".to_owned()),
        ("cross.L0H0:scale=0".to_owned(), "a model that translates".to_owned()),
    ] {
        let error = model.edited(&edits(&[&text])).unwrap_err().to_string();
        assert!(error.contains(&part), "{text}: no {part:?} in {error}");
    }
}
