//! What is recorded is what the model computed: each part follows from those before it, in f64.

use headwise::{
    Error, KernelChoice, LogitRows, Model, Run, SessionOptions, block_on,
    probes::{Keys, Observe, Recorded, Trace},
};

use crate::{
    models::SHAPES,
    reference::{
        attention_rows::{log_sum_exp, row_statistics},
        dot,
        jetmoe::JetMoe,
        rope_cache::rope,
        softmax,
    },
    tiny,
};

const PROMPT: [u32; 11] = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46];
const OTHER: [u32; 5] = [8, 9, 7, 9, 3];

fn everything() -> Observe {
    let parts = ["q", "k", "v", "z", "pattern", "rows"].map(|what| format!("L*H*:{what}"));
    let layers = ["resid-pre", "resid-mid", "resid-post", "router"].map(|what| format!("L*:{what}"));
    let captures = parts.iter().chain(&layers).map(|text| text.parse().unwrap());
    let observe = captures.fold(Observe::new(), Observe::capture);
    let even = (0..PROMPT.len() as u32).map(|row| (0..=row).step_by(2).collect()).collect();
    observe.mass("first", Keys::At(vec![0])).mass("previous", Keys::Behind(1)).mass("even", Keys::OfRow(even))
}

/// A session's trace of runs in steps of at most `most` tokens.
fn trace(model: &Model, observe: &Observe, sequences: &[&[u32]], most: usize) -> Trace {
    let layout = SessionOptions::new().sequences(sequences.len() as u32).step_tokens(most as u32);
    let mut session = model.session(layout).unwrap();
    session.set_observe(Some(observe)).unwrap();
    let runs: Vec<Run<'_>> = (0..).zip(sequences).map(|(sequence, ids)| Run::ids(sequence, ids)).collect();
    for runs in session.steps(&runs) {
        session.forward(&runs).unwrap();
    }
    block_on(session.observed()).unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{what}: {found} for {expected}");
    }
}

/// The rows of a sequence's tokens, in their order.
fn of_sequence(recorded: &Recorded, sequence: u32) -> Vec<usize> {
    let count = recorded.rows.iter().filter(|row| row[0] == sequence).count() as u32;
    (0..count).map(|position| recorded.row_of(sequence, position).expect("each position once")).collect()
}

/// Follows a sequence through the layers.
fn follow(reference: &JetMoe, trace: &Trace, sequence: u32) {
    let (heads, dim) = (reference.kv_heads, reference.head_dim);
    let experts = reference.layers[0].attention.router.len() / reference.width;
    for layer in 0..reference.layers.len() {
        let get =
            |name: &str| trace.get(&format!("blocks.{layer}.{name}")).unwrap_or_else(|| panic!("{name}"));
        let (q, k, v, z) = (get("attn.hook_q"), get("attn.hook_k"), get("attn.hook_v"), get("attn.hook_z"));
        let (pattern, rows) = (get("attn.hook_pattern"), get("attn.hook_rows"));
        let (chosen, gates) = (get("attn.router.hook_chosen"), get("attn.router.hook_gates"));
        let scores = get("attn.router.hook_scores");
        assert_eq!([q.width, k.width, v.width, z.width], [dim; 4]);
        assert_eq!((q.heads.len(), k.heads.len()), (experts * heads, heads));
        let tokens = of_sequence(q, sequence);
        let turned = |recorded: &Recorded, row: usize, head: usize, position: usize| {
            let mut own = wide(recorded.at(row, head));
            rope(&mut own, position as u32, reference.theta);
            own
        };
        for (position, &row) in tokens.iter().enumerate() {
            let own = chosen.at(row, 0);
            // Gates are the softmax of the chosen scores.
            let best: Vec<f64> = own.iter().map(|&e| f64::from(scores.at(row, 0)[e as usize])).collect();
            close(&wide(gates.at(row, 0)), &softmax(&best), "gates");
            for unit in 0..q.heads.len() {
                let kv = unit % heads;
                if !own.contains(&((unit / heads) as f32)) {
                    for recorded in [q, z, pattern, rows] {
                        let some = recorded.at(row, unit).iter().find(|&&value| value != 0.0);
                        // The slot of the largest weight of none is the first.
                        assert_eq!(some, None, "{} of a head that was not chosen", recorded.name);
                    }
                    continue;
                }
                let query = turned(q, row, unit, position);
                let scale = 1.0 / (dim as f64).sqrt();
                let score = |i: usize| scale * dot(&query, &turned(k, tokens[i], kv, i));
                let z_of: Vec<f64> = (0..=position).map(score).collect();
                let weights = softmax(&z_of);
                let found = wide(pattern.at(row, unit));
                close(&found[..=position], &weights, "pattern");
                assert!(found[position + 1..].iter().all(|&weight| weight == 0.0), "nobody sees what comes");
                close(&[found.iter().sum()], &[1.0], "a row's mass");
                let out = (0..dim).map(|c| {
                    weights
                        .iter()
                        .zip(&tokens)
                        .map(|(weight, &row)| weight * f64::from(v.at(row, kv)[c]))
                        .sum()
                });
                close(&wide(z.at(row, unit)), &out.collect::<Vec<f64>>(), "z");
                let statistics = row_statistics(&weights);
                let highest = z_of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let numbers = wide(rows.at(row, unit));
                close(&numbers[..2], &[highest, log_sum_exp(&z_of)], "scores");
                close(&numbers[2..4], &[statistics.entropy, statistics.squares], "entropy, squares");
                close(&[numbers[5]], &[statistics.most], "largest weight");
                assert!((weights[numbers[4] as usize] - statistics.most).abs() < 1e-5);
                let previous = position.checked_sub(1).map_or(0.0, |i| weights[i]);
                let even = weights.iter().step_by(2).sum();
                close(&numbers[6..], &[weights[0], previous, even], "masses");
            }
        }
        // What one layer leaves is what the next one finds.
        if layer > 0 {
            let before = trace.get(&format!("blocks.{}.hook_resid_post", layer - 1)).unwrap();
            assert_eq!(before.values, get("hook_resid_pre").values);
        }
    }
}

#[test]
fn each_part_of_a_trace_follows_from_those_before_it() {
    let reference = JetMoe::load("tests/fixtures/jetmoe_tiny".as_ref());
    for kernels in SHAPES {
        let model = tiny(kernels);
        for most in [1, 4, 64] {
            follow(&reference, &trace(&model, &everything(), &[&PROMPT], most), 0);
        }
        let both = trace(&model, &everything(), &[&PROMPT, &OTHER], 7);
        (0..2).for_each(|sequence| follow(&reference, &both, sequence));
    }
}

/// The residual stream behind the last layer, normed and multiplied with the output head, is the logits; that before the first is
/// the embedding.
#[test]
fn the_ends_of_the_residual_stream_are_the_embedding_and_the_logits() {
    let reference = JetMoe::load("tests/fixtures/jetmoe_tiny".as_ref());
    let model = tiny(KernelChoice::Tuned);
    let trace = block_on(model.trace(&[&PROMPT], &everything())).unwrap();
    let logits = block_on(model.logits(&[&PROMPT])).unwrap().remove(0);
    let first = trace.get("blocks.0.hook_resid_pre").unwrap();
    let last = trace.get(&format!("blocks.{}.hook_resid_post", reference.layers.len() - 1)).unwrap();
    for (row, &id) in PROMPT.iter().enumerate() {
        close(
            &wide(first.at(row, 0)),
            &reference.embedding[id as usize * reference.width..][..reference.width],
            "embedding",
        );
        let found = reference.output(&wide(last.at(row, 0)));
        let vocab = logits.vocab;
        close(&found, &wide(&logits.values[row * vocab..][..vocab]), "logits");
    }
}

#[test]
fn who_looks_changes_no_bit_and_who_does_not_costs_nothing() {
    for kernels in SHAPES {
        let model = tiny(kernels);
        let run = |observe: Option<&Observe>| {
            let mut session = model.session(SessionOptions::new().logit_rows(11)).unwrap();
            session.set_observe(Some(&everything())).unwrap();
            session.set_observe(observe).unwrap();
            session.forward(&[Run::ids(0, &PROMPT).logits(LogitRows::All)]).unwrap();
            let prompt = block_on(session.logits(0)).unwrap();
            let before = session.counters();
            session.forward(&[Run::ids(0, &OTHER[..1])]).unwrap();
            let work = session.counters() - before;
            (prompt, block_on(session.logits(0)).unwrap(), work)
        };
        let plain = {
            let mut session = model.session(SessionOptions::new().logit_rows(11)).unwrap();
            session.forward(&[Run::ids(0, &PROMPT).logits(LogitRows::All)]).unwrap();
            block_on(session.logits(0)).unwrap();
            let before = session.counters();
            session.forward(&[Run::ids(0, &OTHER[..1])]).unwrap();
            session.counters() - before
        };
        let bytes = |observe: Option<&Observe>| {
            let mut session = model.session(SessionOptions::new()).unwrap();
            session.set_observe(observe).unwrap();
            session.forward(&[Run::ids(0, &PROMPT)]).unwrap();
            session.bytes()
        };
        // What is recorded of a step lies in the session's memory.
        let least = block_on(model.trace(&[&PROMPT], &everything())).unwrap().bytes() / 2;
        assert!(bytes(Some(&everything())) > bytes(None) + least);
        let (none, seen, nothing_asked) = (run(None), run(Some(&everything())), run(Some(&Observe::new())));
        assert_eq!((&none.0, &none.1), (&seen.0, &seen.1), "{kernels:?}");
        assert_eq!([none.2.dispatches, nothing_asked.2.dispatches], [plain.dispatches; 2], "{kernels:?}");
        assert_eq!((none.2, nothing_asked.2.macs), (plain, plain.macs));
    }
}

#[test]
fn captures_are_filtered_by_layer_head_and_position() {
    let model = tiny(KernelChoice::Tuned);
    let all = block_on(model.trace(&[&PROMPT, &OTHER], &everything())).unwrap();
    let observe = Observe::new()
        .capture("L1H3@2..4:z".parse().unwrap())
        .capture("L0A2@9,1:q".parse().unwrap())
        .capture("L1@3:resid-mid".parse().unwrap());
    let some = block_on(model.trace(&[&PROMPT, &OTHER], &observe)).unwrap();
    assert_eq!(some.recorded.len(), 3);
    for recorded in &some.recorded {
        let whole = all.get(&recorded.name).unwrap();
        assert!(!recorded.rows.is_empty());
        for (row, &[sequence, position]) in recorded.rows.iter().enumerate() {
            let from = whole.row_of(sequence, position).unwrap();
            for (place, &head) in recorded.heads.iter().enumerate() {
                assert_eq!(recorded.at(row, place), whole.at(from, head as usize), "{}", recorded.name);
            }
            if recorded.heads.is_empty() {
                assert_eq!(recorded.at(row, 0), whole.at(from, 0));
            }
        }
    }
    let z = &some.recorded[0];
    assert_eq!((z.heads.as_slice(), z.rows.as_slice()), (&[3][..], &[[0, 2], [0, 3], [1, 2], [1, 3]][..]));
    let q = &some.recorded[1];
    assert_eq!(q.rows, [[0, 1], [0, 9], [1, 1]]);
}

#[test]
fn what_cannot_be_recorded_is_said_before_anything_runs() {
    let model = tiny(KernelChoice::Tuned);
    for (text, part) in [
        ("L9H0:z", "layer 9 in L9H0:z"),
        ("L0H999:q", "head 999 of layer 0 in L0H999:q"),
        ("L1H99:k", "key/value heads"),
        ("L0A77:z", "head expert 77 of layer 0"),
        ("encoder.L0H0:z", "another stack in encoder.L0H0:z"),
    ] {
        let observe = Observe::new().capture(text.parse().unwrap());
        let error = block_on(model.trace(&[&PROMPT], &observe)).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let observe = everything().budget(10_000);
    let error = block_on(model.trace(&[&PROMPT], &observe)).unwrap_err().to_string();
    assert!(error.contains("of which") && error.contains("at most 9.8 KiB"), "{error}");
    // A session finds out at the step that would pass it, and stands where it stood.
    let mut session = model.session(SessionOptions::new()).unwrap();
    session
        .set_observe(Some(&Observe::new().capture("L0:resid-pre".parse().unwrap()).budget(4 * 1000)))
        .unwrap();
    let mut steps = 0;
    let error = loop {
        match session.forward(&[Run::ids(0, &OTHER)]) {
            Ok(()) => steps += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Argument { name: "bytes to record", .. }), "{error}");
    assert_eq!(session.position(0).unwrap(), 5 * steps);
    // What there is can be taken, and then there is room again.
    let trace = block_on(session.observed()).unwrap();
    assert_eq!(trace.recorded[0].rows.len(), 5 * steps as usize);
    session.forward(&[Run::ids(0, &OTHER)]).unwrap();
}
