//! The promise: the examples do what they say. They are what a packaged crate is tried with, so these tests need nothing beside it.

#[path = "../examples/batch.rs"]
#[allow(dead_code)] // its main
mod batch;
#[path = "../examples/chat.rs"]
#[allow(dead_code)] // its main
mod chat;
#[path = "../examples/own_device.rs"]
#[allow(dead_code)] // its main
mod own_device;
#[path = "../examples/own_method.rs"]
#[allow(dead_code)] // its main
mod own_method;
#[path = "../examples/session.rs"]
#[allow(dead_code)] // its main
mod session;
#[path = "../examples/stream.rs"]
#[allow(dead_code)] // its main
mod stream;

use std::{fs, future::pending, ops::ControlFlow, path::Path, time::Duration};

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

/// What the method finds by statistics, the whole rows have.
#[test]
fn a_method_of_ones_own_needs_no_shader() {
    let model = model();
    let ids = model.encode(PROMPT).unwrap();
    let found = block_on(own_method::sinks(&model, &ids)).unwrap();
    let observe = headwise::Observe::new().capture("L*H*:pattern".parse().unwrap());
    let trace = block_on(model.trace(&[&ids], &observe)).unwrap();
    for (sink, at) in &found {
        let layer = trace.get(&format!("blocks.{}.attn.hook_pattern", at.layer.unwrap())).unwrap();
        let rows = (1..ids.len()).map(|row| layer.at(row, at.index.unwrap() as usize));
        let own: Vec<f32> = rows.filter(|row| row.iter().sum::<f32>() > 0.5).map(|row| row[0]).collect();
        let mean = own.iter().sum::<f32>() / own.len() as f32;
        assert!((mean - sink).abs() < 1e-4, "{at}: {sink}, by whole rows {mean}");
    }
    assert!(found.len() > 10 && found.is_sorted_by(|a, b| a.0 >= b.0));
    let lines = include_str!("../examples/own_method.rs").lines().count();
    assert!(lines < 60, "{lines} lines");
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

/// 200 prompts: each line is what its prompt gives alone; a job that was cut in the midst of a line goes on and writes the same.
#[test]
fn a_batch_job_writes_each_line_once() {
    let model = model();
    let words = ["The king", "She had", "A lifetime", "In the beginning", "What is"];
    let prompts: Vec<String> = (0..200).map(|i| format!("{} {}", words[i % 5], i)).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("batch.jsonl");
    let _ = fs::remove_file(&out);
    let options = Generate::new().greedy().max_new(4);
    assert_eq!(batch::job(&model, &prompts, &options, &out).unwrap(), 200);
    let written = fs::read(&out).unwrap();
    let lines: Vec<serde_json::Value> = written
        .split_inclusive(|&byte| byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 200);
    for (index, (line, prompt)) in lines.iter().zip(&prompts).enumerate() {
        assert_eq!(line["prompt"], *prompt);
        if index % 40 == 7 {
            let alone = block_on(model.generate(prompt, &options, |_| ControlFlow::Continue(()))).unwrap();
            assert_eq!((&line["text"], &line["tokens"]), (&alone.text[0].as_str().into(), &4.into()));
        }
    }
    let half = written.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(149).unwrap().0 + 10;
    fs::write(&out, &written[..half]).unwrap();
    assert_eq!(batch::job(&model, &prompts, &options, &out).unwrap(), 50);
    assert_eq!(fs::read(&out).unwrap(), written);
}

#[test]
fn an_answer_ends_by_itself_at_its_deadline_and_at_an_interrupt() {
    let model = model();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let options = Generate::new().greedy().max_new(12).stop_at([]);
    runtime.block_on(async {
        let chat = chat::conversation(&model, chat::PLAY).await.unwrap();
        let (mut said, long) = (String::new(), Duration::from_secs(600));
        let chat = chat::answer(chat, "Who art thou?", &options, long, pending(), |text| said += text);
        let chat = chat.await.unwrap();
        let roles: Vec<_> = chat.messages().iter().map(|message| message.role.as_str()).collect();
        assert_eq!((roles.as_slice(), said.is_empty()), (&["user", "assistant"][..], false));
        assert_eq!(chat.messages()[1].content, said);
        // Both of these end what else would take very long; the conversation goes on.
        let endless = options.clone().max_new(100_000);
        let soon = Duration::from_millis(30);
        let chat = chat::answer(chat, "And I?", &endless, soon, pending(), |_| ()).await.unwrap();
        let interrupt = tokio::time::sleep(soon);
        let chat = chat::answer(chat, "And he?", &endless, long, interrupt, |_| ()).await.unwrap();
        assert_eq!(chat.messages().len(), 6);
    });
}
