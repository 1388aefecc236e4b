//! Work that a slow device needs long for is cut into submissions: nothing but their number changes, and it can be stopped
//! between them.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use headwise::{
    Cancel, Generate, Generation, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, StopReason,
    Translate, block_on, internal::OptionsForTests,
};

use super::{gpu, load, tiny, tiny_with_a_long_context};

fn cut_at(macs: Option<u64>, kernels: KernelChoice) -> Gpu {
    let options = GpuOptions::new().kernels(kernels).default_limits(true);
    gpu(macs.map_or(options.clone(), |macs| options.submission_macs(macs)))
}

fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % 101).collect()
}

fn generate(model: &Model, prompt: &[u32], options: &Generate) -> Generation {
    block_on(model.generate_ids(&[prompt], options, |_| ControlFlow::Continue(()))).unwrap()
}

/// Bits of everything that a prompt's logits and routes say.
fn bits(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let logits = block_on(model.logits(&[prompt])).unwrap().remove(0);
    let layers = logits.routes.iter().flat_map(|token| &token.layers);
    let gates = layers.flat_map(|layer| layer.attention.iter().chain(&layer.mlp)).map(|choice| choice.gate);
    logits.values.iter().copied().chain(gates).map(f32::to_bits).collect()
}

#[test]
fn a_prompt_that_is_cut_anywhere_gives_the_same_bits() {
    for kernels in [KernelChoice::Plain, KernelChoice::Broadcast] {
        let prompt = ids(60);
        let options = Generate::new().temperature(1.0).seed(3).stop_at([]).max_new(4);
        let whole = load(&cut_at(None, kernels), &tiny()).unwrap();
        let expected = (bits(&whole, &prompt), generate(&whole, &prompt, &options));
        let prefill = generate(&whole, &prompt, &Generate::new().max_new(1)).counters;
        assert_eq!(prefill.passes, 1, "what is small is one submission");

        for parts in [1, 3, 10, u64::MAX] {
            // With room for nothing, each product is a submission of its own.
            let budget = prefill.macs / parts;
            let model = load(&cut_at(Some(budget), kernels), &tiny()).unwrap();
            let found = generate(&model, &prompt, &options);
            assert_eq!(bits(&model, &prompt), expected.0, "{kernels:?} in {parts} parts");
            assert_eq!(found.ids, expected.1.ids, "{kernels:?} in {parts} parts");
            assert_eq!(found.counters.macs, expected.1.counters.macs);
            assert_eq!(found.counters.dispatches, expected.1.counters.dispatches);

            let passes = generate(&model, &prompt, &Generate::new().max_new(1)).counters.passes;
            // Each part and the one behind it hold more than the budget together.
            match parts {
                1 => assert_eq!(passes, 1),
                3 | 10 => assert!((parts..=2 * parts + 1).contains(&passes), "{passes} passes for {parts}"),
                _ => assert!((14..prefill.dispatches).contains(&passes), "{passes} passes"),
            }
        }
    }
}

/// A long prompt is several steps, each of them cut, too.
#[test]
fn a_prompt_of_several_steps_says_how_far_it_is_and_ends_when_it_is_told_to() {
    let folder = tiny_with_a_long_context("long-prompts");
    let prompt = ids(900);
    let options = || Generate::new().greedy().stop_at([]).max_new(3);
    let source = Source::folder(&folder);
    let whole = load(&cut_at(None, KernelChoice::Tuned), &source).unwrap();
    let expected = generate(&whole, &prompt, &options());
    assert_eq!(expected.counters.passes, 3 + 2, "three steps of the prompt, two more tokens");

    let model = load(&cut_at(Some(0), KernelChoice::Tuned), &source).unwrap();
    assert_eq!(generate(&model, &prompt, &options()).ids, expected.ids);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let report = move |read, of| tell.lock().unwrap().push((read, of));
    let passes = generate(&model, &prompt, &options().max_new(1).progress(report)).counters.passes;
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.iter().all(|&(_, of)| of == 900) && told.is_sorted(), "{told:?}");
    assert_eq!(told.last(), Some(&(900, 900)));
    // Before each submission but the first, and when the prompt is read.
    assert_eq!(told.len() as u64, passes);
    assert!(passes > 30, "{passes} passes");

    for at in [1, 2, 7, 25] {
        let (cancel, seen) = (Cancel::new(), Arc::new(AtomicUsize::new(0)));
        let (handle, count) = (cancel.clone(), Arc::clone(&seen));
        let stop = move |_, _| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == at {
                handle.cancel();
            }
        };
        let found = generate(&model, &prompt, &options().progress(stop).cancel(&cancel));
        assert_eq!((&found.stopped[..], &found.ids[..]), (&[StopReason::Cancelled][..], &[vec![]][..]));
        // Nothing is submitted after it: there is a submission before each report.
        assert_eq!(found.counters.passes, at as u64, "cancelled at report {at}");
        assert_eq!(seen.load(Ordering::Relaxed), at);
    }
    // Nothing is left of what was dropped.
    assert_eq!(generate(&model, &prompt, &options()).ids, expected.ids);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Nothing is measured of work that is too little to be cut, so that it stays one submission on the slowest machine.
#[test]
fn small_work_is_never_cut() {
    let model = load(&cut_at(None, KernelChoice::Tuned), &tiny()).unwrap();
    for _ in 0..20 {
        let of = |max_new| generate(&model, &ids(40), &Generate::new().stop_at([]).max_new(max_new)).counters;
        assert_eq!(of(1).passes, 1);
        assert_eq!(of(20).passes, 20);
    }
}

#[test]
fn a_translation_that_is_cut_is_the_same_and_can_be_cancelled() {
    let translate = |model: &Model, options: &Translate| {
        let texts = ["Open the file", "Do you want to save the changes to this document before closing?"];
        block_on(model.translate(&texts, options, |_, _| {}))
    };
    let load = |gpu: &Gpu| block_on(Model::load(gpu, &Source::demo_translate(), LoadOptions::new())).unwrap();
    let (whole, cut) =
        (load(&cut_at(None, KernelChoice::Tuned)), load(&cut_at(Some(1), KernelChoice::Tuned)));
    for beams in [1, 4] {
        let options = Translate::new().beams(beams).max_new(12);
        let texts = |model| -> Vec<_> {
            let all = translate(model, &options).unwrap();
            all.into_iter().map(|one| (one.ids, one.score.to_bits())).collect()
        };
        assert_eq!(texts(&cut), texts(&whole), "{beams} beams");
    }
    let cancel = Cancel::new();
    cancel.cancel();
    let ended = translate(&cut, &Translate::new().cancel(&cancel)).unwrap();
    let nothing = |one: &headwise::Translation| one.ids.is_empty() && one.stopped == StopReason::Cancelled;
    assert!(ended.iter().all(nothing), "{ended:?}");
}
