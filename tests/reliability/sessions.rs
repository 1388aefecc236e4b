//! A session that an app holds: runs of several sequences in one step, going back, forks, sequences as bytes, and errors that
//! leave it as it was.

use std::{ops::ControlFlow, path::Path, sync::mpsc};

use headwise::{
    CachePrecision, Cancel, Error, Generate, GpuOptions, KernelChoice, LoadOptions, LogitRows, Model,
    Precision, Run, Sampling, Session, SessionOptions, Source, block_on,
    internal::{Hook, OptionsForTests, Place, Recorder, Site, Sublayer},
};

use super::{gpu, load, plain_gpu, tiny, tiny_with_a_long_context};

/// JetMoE's layers, and MoLM's with and without a projection of keys and values.
const FIXTURES: [&str; 3] = ["jetmoe_tiny", "molm_tiny", "molm_tiny_2head"];

fn fixture(name: &str, options: LoadOptions<'_>) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    block_on(Model::load(&plain_gpu(), &Source::folder(folder), options)).unwrap()
}

fn session(model: &Model, sequences: u32) -> Session {
    model.session(SessionOptions::new().sequences(sequences)).unwrap()
}

/// Ids below every fixture's vocabulary.
fn ids(count: u32, start: u32) -> Vec<u32> {
    (start..start + count).map(|i| (i * 37 + 11) % 47).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Lets a sequence read ids in one step; the bits of its last token's logits.
fn read(session: &mut Session, sequence: u32, ids: &[u32]) -> Vec<u32> {
    session.forward(&[Run::ids(sequence, ids)]).unwrap();
    bits(&block_on(session.logits(sequence)).unwrap())
}

/// Greedy choices for the rows of the last step.
fn choose(session: &mut Session) -> Vec<u32> {
    session.sample(&Sampling::new().greedy()).unwrap();
    block_on(async { session.tokens().await?.wait().await }).unwrap()
}

/// The message of a refusal, which names an argument or a saved sequence's field.
#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(error @ (Error::Argument { .. } | Error::BadFile { .. })) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Sequences of a session with all that they read, compared with each alone.
struct Alone<'a> {
    model: &'a Model,
    read: Vec<Vec<u32>>,
}

impl Alone<'_> {
    /// The logits of a sequence's last token must be those of its ids in one text, and its choice their largest.
    #[track_caller]
    fn check(&self, session: &mut Session, sequence: u32, chosen: u32) {
        let ids = &self.read[sequence as usize];
        let alone = block_on(self.model.logits(&[ids])).unwrap().remove(0);
        let wanted = &alone.values[(ids.len() - 1) * alone.vocab..];
        let found = block_on(session.logits(sequence)).unwrap();
        assert_eq!(session.position(sequence).unwrap() as usize, ids.len());
        let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == alone.vocab && worst < 2e-4, "sequence {sequence}: {worst}");
        let largest = wanted.iter().copied().fold(f32::MIN, f32::max);
        assert!(wanted[chosen as usize] > largest - 2e-4, "sequence {sequence} chose {chosen}");
    }
}

#[test]
fn sequences_that_read_and_decode_in_one_step_compute_what_each_does_alone() {
    for name in FIXTURES {
        let model = fixture(name, LoadOptions::new());
        let mut session = session(&model, 4);
        let prompts = [ids(7, 0), ids(5, 20), ids(11, 40), ids(3, 60)];
        let mut alone = Alone { model: &model, read: vec![Vec::new(); 4] };

        // The second sequence first: rows are counted by runs, not by sequences.
        session.forward(&[Run::ids(1, &prompts[1]), Run::ids(0, &prompts[0])]).unwrap();
        (alone.read[0], alone.read[1]) = (prompts[0].clone(), prompts[1].clone());
        let chosen = choose(&mut session);
        alone.check(&mut session, 1, chosen[0]);
        alone.check(&mut session, 0, chosen[1]);

        // Two decode, a third starts its prompt.
        let start = Run::ids(2, &prompts[2][..6]).logits(LogitRows::None);
        session.forward(&[start, Run::sampled(0), Run::sampled(1)]).unwrap();
        alone.read[0].push(chosen[1]);
        alone.read[1].push(chosen[0]);
        let chosen = choose(&mut session);
        alone.check(&mut session, 0, chosen[0]);
        alone.check(&mut session, 1, chosen[1]);
        let (first, second) = (chosen[0], chosen[1]);

        // The first two sit out with what was sampled for them, while others read and sample.
        session.forward(&[Run::ids(2, &prompts[2][6..]), Run::ids(3, &prompts[3])]).unwrap();
        (alone.read[2], alone.read[3]) = (prompts[2].clone(), prompts[3].clone());
        let chosen = choose(&mut session);
        alone.check(&mut session, 2, chosen[0]);
        alone.check(&mut session, 3, chosen[1]);

        // Then all decode, in an order of their own.
        session.forward(&[Run::sampled(3), Run::sampled(1), Run::sampled(2), Run::sampled(0)]).unwrap();
        for (sequence, id) in [(0, first), (1, second), (2, chosen[0]), (3, chosen[1])] {
            alone.read[sequence].push(id);
        }
        let chosen = choose(&mut session);
        for (row, sequence) in [3, 1, 2, 0].into_iter().enumerate() {
            alone.check(&mut session, sequence, chosen[row]);
        }
    }
}

/// Few rows each work on their own: who else decodes, in which order, and where ids come from changes no bit.
#[test]
fn few_sequences_decode_to_the_same_bits_sampled_or_by_id_together_or_alone() {
    let plain = gpu(GpuOptions::new().kernels(KernelChoice::Plain).default_limits(true));
    let model = load(&plain, &tiny()).unwrap();
    let prompts = [ids(9, 0), ids(4, 20), ids(6, 40)];
    let (mut together, mut alone) = (session(&model, 3), Vec::new());
    let mut chosen = Vec::new();
    for (sequence, prompt) in (0..).zip(&prompts) {
        let mut single = session(&model, 1);
        assert_eq!(read(&mut together, sequence, prompt), read(&mut single, 0, prompt));
        chosen.push(choose(&mut together)[0]);
        alone.push(single);
    }
    // What was sampled for the first two was put aside when the third came.
    let orders: [[u32; 3]; 4] = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 1, 2]];
    for (round, order) in orders.into_iter().enumerate() {
        // One of them reads by id what was sampled for it.
        let by_id = round as u32 % 3;
        let runs: Vec<Run<'_>> = order
            .iter()
            .map(|&sequence| match sequence == by_id {
                true => Run::ids(sequence, &chosen[sequence as usize..][..1]),
                false => Run::sampled(sequence),
            })
            .collect();
        together.forward(&runs).unwrap();
        for &sequence in &order {
            let single = read(&mut alone[sequence as usize], 0, &[chosen[sequence as usize]]);
            let found = bits(&block_on(together.logits(sequence)).unwrap());
            assert!(found == single, "round {round}, sequence {sequence}");
        }
        for (sequence, id) in order.into_iter().zip(choose(&mut together)) {
            chosen[sequence as usize] = id;
        }
    }
}

#[test]
fn a_session_writes_what_generate_writes_with_the_same_seed() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let prompts = [ids(9, 3), ids(4, 50)];
    let batch: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = Generate::new().temperature(1.5).top_k(30).seed(11).stop_at([]).max_new(20);
    let wanted = block_on(model.generate_ids(&batch, &options, |_| ControlFlow::Continue(()))).unwrap();

    let mut session = session(&model, 2);
    // It owns what it needs.
    drop(model);
    let sampling = Sampling::new().temperature(1.5).top_k(30).seed(11);
    session.forward(&[Run::ids(0, &prompts[0]), Run::ids(1, &prompts[1])]).unwrap();
    let mut found = [Vec::new(), Vec::new()];
    for step in 0..20 {
        if step > 0 {
            session.forward(&[Run::sampled(0), Run::sampled(1)]).unwrap();
        }
        session.sample(&sampling).unwrap();
        let chosen = block_on(async { session.tokens().await?.wait().await }).unwrap();
        found.iter_mut().zip(chosen).for_each(|(ids, id)| ids.push(id));
    }
    assert_eq!(found.to_vec(), wanted.ids);
    assert_eq!(session.counters(), wanted.counters, "one dispatch for one, one pass a step");
}

#[test]
fn a_prompt_is_cut_into_steps_of_the_session_and_all_last_logits_come_together() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let mut session = model.session(SessionOptions::new().sequences(2).step_tokens(8)).unwrap();
    let prompts = [ids(30, 0), ids(13, 30)];
    let runs = [Run::ids(0, &prompts[0]), Run::ids(1, &prompts[1])];
    assert_eq!(refusal(session.forward(&runs)), "tokens of a step: found 43, expected at least 1, at most 8");
    let steps = session.steps(&runs);
    // 29 + 12 tokens in eights, then one of each.
    assert_eq!(steps.len(), 6 + 1);
    for step in steps {
        session.forward(&step).unwrap();
    }
    let chosen = choose(&mut session);
    let alone = Alone { model: &model, read: prompts.to_vec() };
    alone.check(&mut session, 0, chosen[0]);
    alone.check(&mut session, 1, chosen[1]);

    // More sequences than a step has room for, and more rows of logits.
    let mut narrow = model.session(SessionOptions::new().sequences(3).step_tokens(2).logit_rows(1)).unwrap();
    let every = Run::ids(2, &prompts[1]).logits(LogitRows::All);
    for step in narrow.steps(&[runs[0], runs[1], every]) {
        narrow.forward(&step).unwrap();
    }
    assert_eq!([0, 1, 2].map(|sequence| narrow.position(sequence).unwrap()), [30, 13, 13]);
    let chosen = choose(&mut narrow);
    alone.check(&mut narrow, 1, chosen[0]);
}

#[test]
fn what_was_read_behind_a_position_is_forgotten_to_the_last_bit() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let mut session = session(&model, 2);
    let (start, rest) = (ids(12, 0), ids(8, 12));
    read(&mut session, 1, &start);
    let expected = read(&mut session, 1, &rest);
    session.rewind(1, 12).unwrap();
    assert_eq!(session.position(1).unwrap(), 12);
    assert_ne!(read(&mut session, 1, &ids(8, 70)), expected);
    session.rewind(1, 12).unwrap();
    assert_eq!(read(&mut session, 1, &rest), expected);

    // Nobody goes on from a token that was sampled for another place.
    session.sample(&Sampling::new()).unwrap();
    session.rewind(1, 15).unwrap();
    let message = "sampled token: found none for sequence 1, expected one that was sampled and not read yet";
    assert_eq!(refusal(session.forward(&[Run::sampled(1)])), message);
    session.sample(&Sampling::new()).unwrap();
    assert_eq!(refusal(session.forward(&[Run::sampled(1)])), message);
}

#[test]
fn a_fork_goes_on_as_the_original_does() {
    for (name, cache) in FIXTURES
        .into_iter()
        .flat_map(|name| [CachePrecision::F32, CachePrecision::F16].map(|cache| (name, cache)))
    {
        let model = fixture(name, LoadOptions::new().cache_precision(cache));
        let mut session = session(&model, 3);
        let (start, rest, other) = (ids(14, 0), ids(5, 14), ids(5, 60));
        read(&mut session, 2, &other);
        read(&mut session, 1, &start);
        let before = session.counters();
        session.fork(1, 2, 14).unwrap();
        assert_eq!(session.counters().dispatches, before.dispatches, "a copy, no kernel");
        assert_eq!(session.position(2).unwrap(), 14);
        let expected = read(&mut session, 1, &rest);
        assert_eq!(read(&mut session, 2, &rest), expected, "{name} {cache:?}");
        // Nothing of it, and a part of it, over what had been read; the original is untouched.
        session.fork(1, 0, 0).unwrap();
        assert_eq!(session.position(0).unwrap(), 0);
        session.fork(1, 0, 9).unwrap();
        assert_eq!(session.position(0).unwrap(), 9);
        let elsewhere = read(&mut session, 0, &other);
        assert_eq!(session.position(1).unwrap(), 19);
        session.rewind(1, 9).unwrap();
        assert_eq!(read(&mut session, 1, &other), elsewhere, "{name} {cache:?}");
    }
}

#[test]
fn a_restored_sequence_goes_on_with_the_same_bits_wherever_it_was_saved() {
    let folder = tiny_with_a_long_context("saved-sequences");
    for cache in [CachePrecision::F32, CachePrecision::F16] {
        let options = || LoadOptions::new().cache_precision(cache);
        let long = block_on(Model::load(&plain_gpu(), &Source::folder(&folder), options())).unwrap();
        let models = FIXTURES.map(|name| fixture(name, options()));
        for (model, positions) in models.iter().map(|model| (model, 20)).chain([(&long, 200)]) {
            let (start, rest) = (ids(positions, 0), ids(4, 3));
            let mut first = session(model, 1);
            read(&mut first, 0, &start);
            let saved = block_on(first.save(0)).unwrap();
            let steps = |session: &mut Session, sequence: u32| -> Vec<Vec<u32>> {
                rest.iter().map(|&id| read(session, sequence, &[id])).collect()
            };
            let expected = steps(&mut first, 0);

            // In another place of a session with other room, over what a longer sequence had read.
            let options = SessionOptions::new().sequences(3).positions(positions + 7).reserve(3);
            let mut second = model.session(options).unwrap();
            read(&mut second, 2, &ids(positions + 5, 50));
            read(&mut second, 1, &start);
            assert!(
                block_on(second.save(1)).unwrap() == saved,
                "{cache:?}: the bytes say nothing of the place"
            );
            second.restore(2, &saved).unwrap();
            assert_eq!(second.position(2).unwrap(), positions);
            assert!(block_on(second.save(2)).unwrap() == saved, "{cache:?}: saved anew");
            assert!(steps(&mut second, 2) == expected, "{cache:?}: other bits");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn saved_bytes_that_are_damaged_or_of_another_model_are_refused_by_name() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let mut session = session(&model, 2);
    read(&mut session, 0, &[1, 7]);
    let saved = block_on(session.save(0)).unwrap();
    // A header of 40 bytes; two layers' keys and values, two heads of 8 f32 each.
    assert_eq!(saved.len(), 40 + 2 * (2 * 2 * 2 * 8 * 4));
    read(&mut session, 1, &ids(6, 0));
    let held = session.position(1).unwrap();
    let refused = |session: &mut Session, bytes: &[u8], fields: &[&str]| {
        let message = refusal(session.restore(1, bytes));
        let field = message.strip_prefix("saved sequence: ").unwrap_or_else(|| panic!("{message}"));
        assert!(fields.iter().any(|name| field.starts_with(&format!("{name}: "))), "{message}");
    };
    for length in 0..saved.len() {
        refused(&mut session, &saved[..length], &["length"]);
    }
    refused(&mut session, &[&saved[..], &[0]].concat(), &["length"]);
    // Each byte of the header belongs to a field.
    let fields: [(usize, &[&str]); 7] = [
        (8, &["start"]),
        (12, &["version"]),
        (16, &["positions", "length"]),
        (24, &["model"]),
        (28, &["precision of the weights"]),
        (32, &["precision of the cache"]),
        (usize::MAX, &["checksum"]),
    ];
    for at in 0..8 * saved.len() {
        let mut bytes = saved.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        let names = fields.iter().find(|(end, _)| at / 8 < *end).unwrap().1;
        refused(&mut session, &bytes, names);
    }
    // Nothing of it reached the sequence.
    assert_eq!(session.position(1).unwrap(), held);
    let mut other = model.session(SessionOptions::new()).unwrap();
    read(&mut other, 0, &ids(6, 0));
    assert_eq!(read(&mut session, 1, &[5]), read(&mut other, 0, &[5]));

    let mut short = model.session(SessionOptions::new().positions(1)).unwrap();
    assert_eq!(
        refusal(short.restore(0, &saved)),
        "saved sequence: positions: found 2, expected at most the session's 1"
    );
    for (options, field) in [
        (LoadOptions::new().precision(Precision::F16), "precision of the weights"),
        (LoadOptions::new().cache_precision(CachePrecision::F16), "precision of the cache"),
    ] {
        let model = fixture("jetmoe_tiny", options);
        let message = refusal(self::session(&model, 1).restore(0, &saved));
        assert!(message.starts_with(&format!("saved sequence: {field}: ")), "{message}");
    }
}

/// The fixture with one bit of one weight changed, and with another base of its rotary positions. The caller removes the
/// folder.
fn nearly_tiny(name: &str, weight: bool) -> std::path::PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    match weight {
        // The lowest bit of the first number.
        true => {
            let first = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[first] ^= 1;
        }
        false => config["rope_theta"] = 5000.0.into(),
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn a_saved_sequence_belongs_to_one_model() {
    let gpu = plain_gpu();
    let mut session = session(&load(&gpu, &tiny()).unwrap(), 1);
    read(&mut session, 0, &[1, 7, 42]);
    let saved = block_on(session.save(0)).unwrap();
    let folders = [nearly_tiny("another-weight", true), nearly_tiny("another-base", false)];
    for folder in &folders {
        let other = load(&gpu, &Source::folder(folder)).unwrap();
        let message = refusal(self::session(&other, 1).restore(0, &saved));
        assert!(message.starts_with("saved sequence: model: "), "{message}");
        std::fs::remove_dir_all(folder).unwrap();
    }
    // Loaded anew, it is the same.
    let again = load(&gpu, &tiny()).unwrap();
    self::session(&again, 1).restore(0, &saved).unwrap();
}

#[test]
fn what_a_session_refuses_it_names_and_nothing_of_it_changes() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let mut session =
        model.session(SessionOptions::new().sequences(3).positions(20).step_tokens(12)).unwrap();
    let untouched = |session: &Session| (0..3).map(|s| session.position(s).unwrap()).collect::<Vec<_>>();
    assert_eq!(
        refusal(session.sample(&Sampling::new())),
        "rows of logits: found none in the last step, expected at least one"
    );
    assert_eq!(
        refusal(block_on(session.routes())),
        "routes: found no step, expected a step that chose experts"
    );
    session.forward(&[Run::ids(0, &[1, 7, 42]), Run::ids(1, &[5]).logits(LogitRows::None)]).unwrap();
    assert_eq!(
        refusal(block_on(session.tokens()).map(drop)),
        "sampled tokens: found none of the last step, expected a step to sample from"
    );
    session.sample(&Sampling::new().greedy()).unwrap();
    let (before, counted) = (untouched(&session), session.counters());
    let (long, short, over) = (ids(13, 0), ids(12, 0), ids(18, 0));
    let cases: [(&[Run<'_>], &str); 11] = [
        (&[], "tokens of a step: found 0, expected at least 1, at most 12"),
        (&[Run::ids(3, &[1])], "sequence: found 3, expected below the 3 of the session"),
        (
            &[Run::ids(2, &[1]), Run::sampled(0), Run::ids(2, &[1])],
            "sequence: found 2 twice, expected each at most once in a step",
        ),
        (&[Run::ids(2, &[])], "run: found no tokens, expected at least one token"),
        (&[Run::ids(2, &[1, 101])], "token id: found 101, expected below the vocabulary size 101"),
        (
            &[Run::sampled(0), Run::sampled(1)],
            "sampled token: found none for sequence 1, expected one that was sampled and not read yet",
        ),
        (&[Run::ids(2, &long)], "tokens of a step: found 13, expected at least 1, at most 12"),
        (
            &[Run::ids(2, &[1, 2]).logits(LogitRows::At(&[2]))],
            "row of logits: found 2, expected one of the run's 2 tokens",
        ),
        (
            &[Run::ids(2, &short).logits(LogitRows::All)],
            "rows of logits of a step: found 12, expected at most 3",
        ),
        (&[Run::ids(2, &short), Run::ids(0, &over)], "sequence length: found 21 tokens, expected at most 20"),
        (
            &[Run::ids(2, &short), Run::sampled(0)],
            "tokens of a step: found 13, expected at least 1, at most 12",
        ),
    ];
    for (runs, expected) in cases {
        assert_eq!(refusal(session.forward(runs)), expected);
    }
    for (sampling, name) in [
        (Sampling::new().temperature(-1.0), "temperature"),
        (Sampling::new().top_k(0), "top-k"),
        (Sampling::new().top_p(f32::NAN), "top-p"),
    ] {
        assert!(refusal(session.sample(&sampling)).starts_with(name));
    }
    let behind = "position: found 4, expected at most 3, where it is";
    assert_eq!(refusal(session.rewind(0, 4)), behind);
    assert_eq!(refusal(session.fork(0, 2, 4)), behind);
    assert_eq!(refusal(session.fork(0, 0, 1)), "sequence: found 0, itself, expected another one to copy to");
    let unknown = "sequence: found 7, expected below the 3 of the session";
    assert_eq!(refusal(session.position(7)), unknown);
    assert_eq!(refusal(session.rewind(7, 0)), unknown);
    assert_eq!(refusal(session.fork(0, 7, 1)), unknown);
    assert_eq!(refusal(session.fork(7, 0, 1)), unknown);
    assert_eq!(refusal(block_on(session.save(7))), unknown);
    assert_eq!(refusal(session.restore(7, &[])), unknown);
    assert_eq!(refusal(block_on(session.logits(7))), unknown);
    assert_eq!(
        refusal(block_on(session.logits(1))),
        "rows of logits: found none of sequence 1 in the last step, expected a run that wants some"
    );
    assert_eq!((untouched(&session), session.counters()), (before, counted));
    // What was sampled is still there, and so are the logits it was sampled from.
    let mut other = self::session(&model, 1);
    other.forward(&[Run::ids(0, &[1, 7, 42])]).unwrap();
    let chosen = choose(&mut other)[0];
    assert_eq!(block_on(async { session.tokens().await?.wait().await }).unwrap(), [chosen]);
    session.forward(&[Run::sampled(0)]).unwrap();
    assert_eq!(bits(&block_on(session.logits(0)).unwrap()), read(&mut other, 0, &[chosen]));
}

#[test]
fn a_model_of_images_has_no_session_and_says_what_has() {
    let model = load(&plain_gpu(), &Source::demo_classify()).unwrap();
    let refused = model.session(SessionOptions::new()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("classify"), "{refused}");
}

#[test]
fn options_out_of_range_are_named() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    for (options, expected) in [
        (SessionOptions::new().sequences(0), "sequences: found 0, expected at least 1, at most 65535"),
        (SessionOptions::new().positions(0), "positions: found 0, expected at least 1, at most 64"),
        (SessionOptions::new().positions(65), "positions: found 65, expected at least 1, at most 64"),
        (
            SessionOptions::new().positions(30).reserve(31),
            "positions to reserve: found 31, expected at least 1, at most 30",
        ),
        (
            SessionOptions::new().step_tokens(u32::MAX),
            "tokens of a step: found 4294967295, expected at least 1, at most 65535",
        ),
        (
            SessionOptions::new().step_tokens(4).logit_rows(5),
            "rows of logits of a step: found 5, expected at least 1, at most 4",
        ),
    ] {
        assert_eq!(refusal(model.session(options).map(drop)), expected);
    }
    let translator =
        block_on(Model::load(&plain_gpu(), &Source::demo_translate(), LoadOptions::new())).unwrap();
    let message = refusal(translator.session(SessionOptions::new()).map(drop));
    assert!(message.starts_with("model: found one for the task translate"), "{message}");
}

#[test]
fn a_model_of_whole_sequences_reads_each_in_one_step_and_keeps_nothing() {
    let model = block_on(Model::load(&plain_gpu(), &Source::demo_fill(), LoadOptions::new())).unwrap();
    let mut session = session(&model, 2);
    let text = ids(9, 0);
    let last = read(&mut session, 0, &text);
    let alone = Alone { model: &model, read: vec![text.clone()] };
    let chosen = choose(&mut session)[0];
    alone.check(&mut session, 0, chosen);
    let message = refusal(session.forward(&[Run::ids(0, &[1])]));
    assert!(message.starts_with("position: found 9 of sequence 0, expected 0, for the model"), "{message}");
    for message in
        [refusal(session.fork(0, 1, 3)), refusal(block_on(session.save(0))), refusal(session.restore(1, &[]))]
    {
        assert!(message.starts_with("model: found one that reads whole sequences"), "{message}");
    }
    session.rewind(0, 0).unwrap();
    assert_eq!(read(&mut session, 0, &text), last);
}

/// Layers whose keys live for one step share one memory, after it grew, too.
#[test]
fn what_lives_for_one_step_grows_by_what_the_session_says() {
    let gpu = plain_gpu();
    let model = block_on(Model::load(&gpu, &Source::demo_fill(), LoadOptions::new())).unwrap();
    let mut session = session(&model, 2);
    let text = ids(100, 0);
    let short = read(&mut session, 0, &text[..9]);
    let (said, held) = (session.bytes(), gpu.allocated_bytes());
    session.rewind(0, 0).unwrap();
    let long = read(&mut session, 0, &text);
    // From one page of 64 positions to two, of both sequences, once for all layers.
    let page = 2 * 64 * model.info().cache_bytes(CachePrecision::F32);
    assert_eq!((session.bytes() - said, gpu.allocated_bytes() - held), (page, page));
    let alone = Alone { model: &model, read: vec![text.clone()] };
    let chosen = choose(&mut session)[0];
    alone.check(&mut session, 0, chosen);
    for (expected, length) in [(short, 9), (long, 100)] {
        session.rewind(0, 0).unwrap();
        assert_eq!(read(&mut session, 0, &text[..length]), expected);
    }
}

#[test]
fn a_session_says_what_it_holds_and_leaves_nothing_behind() {
    let folder = tiny_with_a_long_context("memory-of-a-session");
    let free = plain_gpu();
    let model = load(&free, &Source::folder(&folder)).unwrap();
    let weights = free.allocated_bytes();
    let mut session = model.session(SessionOptions::new().sequences(2)).unwrap();
    let planned = session.bytes();
    // On top there are the parameters of dispatches and what holds the place of no buffer.
    assert!(free.allocated_bytes() - weights >= planned);
    let prompt = ids(100, 0);
    session.forward(&[Run::ids(1, &prompt)]).unwrap();
    // Two sequences grow from one page of 64 positions to two, and the cosine and sine of four angles for each.
    let keys_and_values = 2 * 64 * model.info().cache_bytes(CachePrecision::F32);
    assert_eq!(session.bytes() - planned, keys_and_values + 64 * 4 * 8);
    let saved = block_on(session.save(1)).unwrap();
    session.restore(0, &saved).unwrap();
    session.fork(0, 1, 40).unwrap();
    drop(session);
    free.settle().unwrap();
    assert_eq!(free.allocated_bytes(), weights);
    drop(model);

    let limit = weights + planned - 1;
    let tight = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true).memory_limit(limit));
    let model = load(&tight, &Source::folder(&folder)).unwrap();
    match model.session(SessionOptions::new().sequences(2)).map(drop) {
        Err(Error::TooLarge { need, have, .. }) => assert_eq!((need, have), (planned, planned - 1)),
        other => panic!("expected TooLarge, got {other:?}"),
    }
    assert_eq!(tight.allocated_bytes(), weights, "nothing was allocated");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Five sequences are more than the few tokens that any step splits, and still decode.
#[test]
fn five_sequences_that_decode_split_their_keys() {
    let folder = tiny_with_a_long_context("five-sequences");
    let model = load(&plain_gpu(), &Source::folder(&folder)).unwrap();
    let mut session = session(&model, 5);
    // Dispatches of a step in which all decode, each at this position.
    let mut dispatches = |position: u32| {
        let prompts: Vec<Vec<u32>> = (0..5).map(|sequence| ids(position, 7 * sequence)).collect();
        let runs: Vec<Run<'_>> = (0..).zip(&prompts).map(|(sequence, ids)| Run::ids(sequence, ids)).collect();
        (0..5).for_each(|sequence| session.rewind(sequence, 0).unwrap());
        for step in session.steps(&runs) {
            session.forward(&step).unwrap();
        }
        choose(&mut session);
        let before = session.counters();
        session.forward(&(0..5).map(Run::sampled).collect::<Vec<_>>()).unwrap();
        block_on(session.logits(4)).unwrap();
        let counted = session.counters() - before;
        assert_eq!(counted.passes, 1);
        counted.dispatches
    };
    // The token's own key is the 257th: one merge more in each of two layers.
    let (whole, split) = (dispatches(255), dispatches(256));
    assert_eq!(split, whole + 2);
    assert_eq!(dispatches(300), split);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A model of two heads of 8 channels on a device whose bindings hold 256 slots of one of them, and on one that holds all.
fn cut_and_whole(folder: &Path) -> [Model; 2] {
    let options = || GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true);
    [options().most_binding(256 * 2 * 8 * 4), options()]
        .map(|options| load(&gpu(options), &Source::folder(folder)).unwrap())
}

/// For 512 positions: the slots from the 257th on are then cut from the others.
fn of_512_positions() -> SessionOptions {
    SessionOptions::new().positions(512).step_tokens(32)
}

/// The next step of sessions that compute the same, and choose the same for every row.
#[track_caller]
fn same(sessions: &mut [Session; 2], runs: &[Run<'_>]) {
    let [found, expected] = sessions.each_mut().map(|session| {
        session.forward(runs).unwrap();
        (block_on(session.logits(0)).unwrap(), choose(session))
    });
    let worst = found.0.iter().zip(&expected.0).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-4, "{worst}");
    assert_eq!(found.1, expected.1);
}

#[test]
fn a_cache_that_is_cut_by_slots_computes_what_a_whole_one_does() {
    let folder = tiny_with_a_long_context("cut-by-slots");
    let models = cut_and_whole(&folder);
    let mut sessions = models.each_ref().map(|model| model.session(of_512_positions().sequences(2)).unwrap());
    let prompt = ids(250, 0);
    // A prompt in the first section, then decoding into the second.
    for session in &mut sessions {
        for step in session.steps(&[Run::ids(0, &prompt)]) {
            session.forward(&step).unwrap();
        }
    }
    same(&mut sessions, &[Run::ids(0, &[5])]);
    (0..20).for_each(|_| same(&mut sessions, &[Run::sampled(0)]));
    // Prompts over both, one of a fork, then a token of each.
    sessions.iter_mut().for_each(|session| session.fork(0, 1, 265).unwrap());
    same(&mut sessions, &[Run::ids(1, &prompt[..10]), Run::ids(0, &prompt[..20])]);
    (0..3).for_each(|_| same(&mut sessions, &[Run::sampled(1), Run::sampled(0)]));

    // What was kept is what was there, to the bit.
    let [mut session, _] = sessions;
    let saved = block_on(session.save(0)).unwrap();
    session.restore(1, &saved).unwrap();
    assert_eq!(block_on(session.save(1)).unwrap(), saved);
    session.fork(0, 1, 270).unwrap();
    session.rewind(0, 270).unwrap();
    assert_eq!(block_on(session.save(1)).unwrap(), block_on(session.save(0)).unwrap());
    let next = read(&mut session, 0, &[7]);
    assert_eq!(read(&mut session, 1, &[7]), next);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Only what has slots in a second section is computed section by section; what cannot be cut is refused by name.
#[test]
fn a_cache_is_cut_where_it_must_be() {
    let folder = tiny_with_a_long_context("cut-where-it-must-be");
    let [cut, _] = cut_and_whole(&folder);
    let dispatches = |position: u32| {
        let mut session = cut.session(of_512_positions()).unwrap();
        for step in session.steps(&[Run::ids(0, &ids(position, 3))]) {
            session.forward(&step).unwrap();
        }
        choose(&mut session);
        let before = session.counters();
        session.forward(&[Run::sampled(0)]).unwrap();
        choose(&mut session);
        (session.counters() - before).dispatches
    };
    // Of a decoded token in each of two layers: two heads, then two heads of two sections and a merge.
    assert_eq!(dispatches(257), dispatches(200) + 2 * 3);
    match cut.session(of_512_positions().positions(513)).map(drop) {
        Err(Error::TooLarge { what, need, have, .. }) => {
            assert_eq!((&what[..], need, have), ("the angles of 513 positions", 513 * 32, 512 * 32));
        }
        other => panic!("expected TooLarge, got {other:?}"),
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Says where it was called.
struct Told(mpsc::Sender<(u32, Sublayer, Place)>);

impl Hook for Told {
    fn reach(&mut self, _: &mut Recorder, site: &Site<'_>) {
        self.0.send((site.layer.layer, site.sublayer, site.place)).unwrap();
    }
}

#[test]
fn a_hook_in_a_session_stands_in_every_layer_of_every_step_and_changes_nothing() {
    let model = fixture("jetmoe_tiny", LoadOptions::new());
    let layers = model.info().layers;
    let [mut plain, mut told] = [session(&model, 1), session(&model, 1)];
    let (sender, places) = mpsc::channel();
    told.set_hook(Some(Box::new(Told(sender))));
    for step in [&ids(9, 0)[..], &ids(1, 9)] {
        assert_eq!(read(&mut told, 0, step), read(&mut plain, 0, step));
        let attention = [Place::Routes, Place::Queries, Place::Attended, Place::Output];
        let mlp = [Place::Routes, Place::Hidden, Place::Output];
        let expected: Vec<_> = (0..layers)
            .flat_map(|layer| {
                let attention = attention.map(|place| (layer, Sublayer::Attention, place));
                attention.into_iter().chain(mlp.map(|place| (layer, Sublayer::Mlp, place)))
            })
            .collect();
        assert_eq!(places.try_iter().collect::<Vec<_>>(), expected);
    }
    assert_eq!(told.counters(), plain.counters());
}

#[test]
fn a_step_that_is_cancelled_leaves_the_sequences_as_they_were() {
    let gpu = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true).submission_macs(0));
    let model = load(&gpu, &tiny()).unwrap();
    let start = |session: &mut Session| {
        session.forward(&[Run::ids(0, &ids(9, 0)), Run::ids(1, &ids(4, 30))]).unwrap();
        choose(session)
    };
    let mut free = session(&model, 3);
    start(&mut free);
    free.forward(&[Run::sampled(1), Run::ids(2, &ids(6, 50))]).unwrap();
    choose(&mut free);
    free.forward(&[Run::sampled(0), Run::sampled(1), Run::sampled(2)]).unwrap();
    let expected: Vec<Vec<u32>> = (0..3).map(|s| bits(&block_on(free.logits(s)).unwrap())).collect();

    for at in [0, 1, 7] {
        let mut session = session(&model, 3);
        start(&mut session);
        let cancel = Cancel::new();
        let mut told = 0;
        session.forward(&[Run::sampled(1), Run::ids(2, &ids(6, 50))]).unwrap();
        session.sample(&Sampling::new().greedy()).unwrap();
        let result = block_on(session.submit(|_, _| {
            if told == at {
                cancel.cancel();
            }
            told += 1;
            cancel.flow()
        }));
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(told, at + 1);
        assert_eq!([0, 1, 2].map(|s| session.position(s).unwrap()), [9, 4, 0]);
        assert!(refusal(block_on(session.logits(1))).starts_with("rows of logits: "));
        // What was sampled before it is still there, for the one that sat out, too.
        session.forward(&[Run::sampled(1), Run::ids(2, &ids(6, 50))]).unwrap();
        choose(&mut session);
        session.forward(&[Run::sampled(0), Run::sampled(1), Run::sampled(2)]).unwrap();
        let found: Vec<Vec<u32>> = (0..3).map(|s| bits(&block_on(session.logits(s)).unwrap())).collect();
        assert!(found == expected, "cancelled at {at}");
    }
}

/// Who waits for a step may go away between two of its parts, as a future that is dropped does; what is recorded then works as
/// ever.
#[test]
fn a_step_that_was_left_half_way_goes_on() {
    let gpu = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true).submission_macs(0));
    let model = load(&gpu, &tiny()).unwrap();
    let sampling = Sampling::new().temperature(1.5).seed(5);
    let choose = |session: &mut Session| {
        session.sample(&sampling).unwrap();
        block_on(async { session.tokens().await?.wait().await }).unwrap()
    };
    let mut free = session(&model, 1);
    read(&mut free, 0, &ids(9, 0));
    let expected = choose(&mut free);

    let mut session = session(&model, 1);
    session.forward(&[Run::ids(0, &ids(9, 0))]).unwrap();
    let left = std::panic::AssertUnwindSafe(|| {
        block_on(session.submit(|submitted, _| {
            assert_eq!(submitted, 0, "left on purpose");
            ControlFlow::Continue(())
        }))
    });
    assert!(std::panic::catch_unwind(left).is_err());
    assert_eq!(choose(&mut session), expected);
}
