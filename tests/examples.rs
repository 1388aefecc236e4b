//! The promise: the examples do what they say. They are what a packaged crate is tried with, so these tests need nothing beside it.

#[path = "../examples/own_device.rs"]
#[allow(dead_code)] // its main
mod own_device;
#[path = "../examples/session.rs"]
#[allow(dead_code)] // its main
mod session;
#[path = "../examples/stream.rs"]
#[allow(dead_code)] // its main
mod stream;

use std::ops::ControlFlow;

use headwise::{Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, StopReason, block_on};

const PROMPT: &str = "It is a truth universally acknowledged, that";

fn model() -> Model {
    let options = GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true);
    let gpu = block_on(Gpu::new(options)).expect("these tests need a GPU adapter: scripts/setup vulkan");
    block_on(Model::load(&gpu, &Source::demo(), LoadOptions::new())).unwrap()
}

#[test]
fn a_session_writes_what_a_generation_writes_and_goes_on_where_it_was() {
    let model = model();
    let prompt = model.tokenizer().unwrap().encode(PROMPT).unwrap();
    let texts = block_on(session::texts(&model, &prompt)).unwrap();
    let greedy = Generate::new().greedy().stop_at([]).max_new(24);
    let ids = |prompt: &[u32]| {
        let generation = block_on(model.generate_ids(&[prompt], &greedy, |_| ControlFlow::Continue(())));
        generation.unwrap().ids[0].clone()
    };
    assert_eq!(texts.likeliest, ids(&prompt));
    assert_ne!(texts.drawn[0], texts.drawn[1], "each sequence has its own draws");
    let second = [&prompt[..], &texts.drawn[1]].concat();
    assert_eq!(texts.kept, ids(&second));
    assert_eq!(texts.restored, texts.kept);
}

#[test]
fn an_app_shares_its_device() {
    let (text, heat) = block_on(own_device::run("The king shall", 40)).unwrap();
    assert!(text.len() > 40, "{text}");
    // Spreading keeps all heat, and each token brings one.
    let heat: f32 = heat.iter().sum();
    assert!((heat - 40.0).abs() < 1e-3, "{heat}");
}

#[test]
fn a_stream_is_read_stopped_and_meets_its_deadline() {
    let model = model();
    let options = Generate::new().seed(1).max_new(32);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let texts = runtime.block_on(stream::texts(&model, PROMPT, &options)).unwrap();
    let mut text = String::new();
    let whole = block_on(model.generate(PROMPT, &options, |token| {
        text += &token.text;
        ControlFlow::Continue(())
    }));
    let whole = whole.unwrap();
    assert_eq!((&texts.whole.ids, &texts.whole.stopped), (&whole.ids, &whole.stopped));
    assert_eq!(texts.text, text);
    assert!(texts.turns > 1);
    let StopReason::Cancelled = texts.by_deadline.stopped[0] else { panic!("{:?}", texts.by_deadline) };
    assert!((3..32).contains(&texts.stopped.ids[0].len()), "{:?}", texts.stopped);
    assert_eq!(texts.stopped.ids[0], texts.whole.ids[0][..texts.stopped.ids[0].len()]);
}
