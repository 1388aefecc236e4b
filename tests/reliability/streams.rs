//! Futures that let others have their turn, and streams: on tokio, on no runtime, ended in their midst.

use std::{
    future::poll_fn,
    ops::ControlFlow,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use headwise::{
    Bench, Cancel, Chat, ChatTemplate, Embed, Error, Generate, Generation, Gpu, GpuOptions, Image,
    KernelChoice, LoadOptions, Model, ModelInfo, PendingTokens, ReplyStream, Score, Session, Source,
    StopReason, TokenStream, Translate, block_on, internal::OptionsForTests,
};

use super::{gpu, load, plain_gpu, tiny};

fn is_send<T: Send>(_: T) {}

fn on(_: &headwise::Token) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Never runs: that it compiles is the promise.
#[allow(dead_code)]
fn every_public_future_can_change_threads(
    (gpu, source, model): (&Gpu, &Source, &Model),
    (session, pending): (&mut Session, PendingTokens),
    (chat, reply, replies): (&mut Chat, ReplyStream, &mut ReplyStream),
    (stream, tokens): (TokenStream, &mut TokenStream),
    cancel: Cancel,
) {
    fn owned<T: Send + 'static>() {}
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<(Gpu, Model, Cancel, Generate)>();
    owned::<(Session, Chat, TokenStream, ReplyStream, PendingTokens)>();
    is_send(Gpu::new(GpuOptions::new()));
    is_send(Gpu::adapters());
    is_send(ModelInfo::read(source));
    is_send(ChatTemplate::read(source));
    is_send(Model::check(source));
    is_send(Model::demo(gpu));
    is_send(Model::load(gpu, source, LoadOptions::new().progress(|_, _| ()).warm_up(true)));
    is_send(model.warm_up());
    is_send(model.generate("", &Generate::new(), on));
    is_send(model.generate_ids(&[], &Generate::new(), on));
    is_send(model.logits(&[]));
    is_send(model.logits_in_steps(&[], 1));
    is_send(model.routes(&[]));
    is_send(model.expert_use(&[]));
    is_send(model.fill("", 1));
    is_send(model.fill_ids(&[], 1));
    is_send(model.classify(&[], 1));
    is_send(model.translate(&[], &Translate::new(), |_, _| ()));
    is_send(model.translate_ids(&[], &Translate::new(), |_, _| ()));
    is_send(model.translation_logits(&[], &[]));
    is_send(model.score(&[], &Score::new()));
    is_send(model.score_ids(&[], &Score::new()));
    is_send(model.score_each(&[], &Score::new(), |_| ()));
    is_send(model.embed(&[], &Embed::new()));
    is_send(model.embed_ids(&[], &Embed::new()));
    is_send(model.bench(Bench::new().progress(|_, _| ())));
    is_send(session.submit(|_, _| cancel.flow()));
    is_send(session.tokens());
    is_send(session.logits(0));
    is_send(session.routes());
    is_send(session.save(0));
    is_send(session.token_logprobs(&[]));
    is_send(session.hidden(0));
    is_send(session.edits_applied());
    is_send(pending.wait());
    is_send(chat.reply("", &Generate::new(), on));
    is_send(tokens.next());
    is_send(stream.stop());
    is_send(replies.next());
    is_send(reply.stop());
}

/// The model of English prose, whose tokens take a while, with all that it needs compiled.
fn prose(gpu: &Gpu) -> Model {
    let model = load(gpu, &Source::demo()).unwrap();
    block_on(model.warm_up()).unwrap();
    model
}

/// A text that does not end by itself.
fn long(tokens: usize) -> Generate {
    Generate::new().greedy().stop_at([]).max_new(tokens)
}

const PROMPT: &str = "The king shall";

/// Waits, for other threads to end; a minute is for ever.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn same(a: &Generation, b: &Generation) {
    assert_eq!((&a.ids, &a.stopped, a.counters), (&b.ids, &b.stopped, b.counters));
}

#[test]
fn a_stream_is_the_generation_on_any_executor() {
    let model = prose(&plain_gpu());
    for options in [long(20), Generate::new().seed(5).max_new(20).with_routes()] {
        let mut text = String::new();
        let show = |token: &headwise::Token| {
            text += &token.text;
            ControlFlow::Continue(())
        };
        let whole = block_on(model.generate(PROMPT, &options, show)).unwrap();
        // The thread of the device waits for these two.
        same(&pollster::block_on(model.generate(PROMPT, &options, on)).unwrap(), &whole);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let (other, theirs) = (model.clone(), options.clone());
        let task = runtime.spawn(async move { other.generate(PROMPT, &theirs, on).await });
        same(&runtime.block_on(task).unwrap().unwrap(), &whole);

        let read = async |mut tokens: TokenStream| {
            let (mut read, mut ids) = (String::new(), Vec::new());
            while let Some(token) = tokens.next().await {
                let token = token.unwrap();
                read += &token.text;
                ids.extend((!token.prompt).then_some(token.id));
            }
            assert!(tokens.next().await.is_none());
            assert_eq!((&read, &ids), (&text, &whole.ids[0]));
            same(tokens.generation().unwrap(), &whole);
            same(&tokens.stop().await.unwrap(), &whole);
        };
        block_on(read(model.stream(PROMPT, &options)));
        runtime.block_on(read(model.stream(PROMPT, &options)));
    }
}

#[test]
fn a_panic_of_the_program_within_a_stream_is_told_and_harms_no_model() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let options = Generate::new().greedy().stop_at([]).max_new(8);
    let expected = block_on(model.generate_ids(&[&[1, 2, 3]], &options, on)).unwrap();
    let panics = options.clone().filter_logits(|ids, _| assert!(ids.len() < 6, "a rule of the program's"));
    let mut tokens = model.stream_ids(&[&[1, 2, 3]], &panics);
    block_on(async {
        for id in &expected.ids[0][..3] {
            assert_eq!(tokens.next().await.unwrap().unwrap().id, *id);
        }
        let error = tokens.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Panic { .. }), "{error}");
        assert_eq!(error.to_string(), "a panic in generating: a rule of the program's");
        assert!(tokens.next().await.is_none());
    });
    same(&block_on(model.generate_ids(&[&[1, 2, 3]], &options, on)).unwrap(), &expected);
}

#[test]
fn what_is_wrong_is_the_first_item_of_a_stream_and_the_last() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    for (prompt, options, named) in [
        (&[][..], Generate::new(), "prompt: found no tokens"),
        (&[101], Generate::new(), "token id: found 101"),
        (&[1], Generate::new().top_p(2.0), "top-p"),
    ] {
        let mut tokens = model.stream_ids(&[prompt], &options);
        let error = block_on(tokens.next()).unwrap().unwrap_err().to_string();
        assert!(error.to_lowercase().contains(named), "{error}");
        assert!(block_on(tokens.next()).is_none() && tokens.generation().is_none());
    }
}

#[test]
fn a_stream_that_is_dropped_ends_its_thread_and_frees_its_memory() {
    let gpu = plain_gpu();
    let model = prose(&gpu);
    let before = gpu.allocated_bytes();
    // Read to the third token; not at all, so that its thread waits for room; before it has begun.
    for (read, pause) in [(3, 0), (0, 400), (0, 0)] {
        let mut tokens = model.stream(PROMPT, &long(480));
        for _ in 0..read {
            block_on(tokens.next()).unwrap().unwrap();
        }
        std::thread::sleep(Duration::from_millis(pause));
        drop(tokens);
        wait_until("memory", || gpu.allocated_bytes() == before);
    }
    let mut tokens = model.stream(PROMPT, &long(480));
    block_on(tokens.next()).unwrap().unwrap();
    // The thread has the last handle.
    drop(model);
    let generation = block_on(tokens.stop()).unwrap();
    assert_eq!(generation.stopped, [StopReason::Cancelled]);
    assert!((1..480).contains(&generation.ids[0].len()));
    assert_eq!(gpu.allocated_bytes(), 0);
}

#[test]
fn a_stream_that_is_dropped_in_its_prompt_reads_no_further() {
    let gpu = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).submission_macs(1));
    let model = load(&gpu, &tiny()).unwrap();
    let before = gpu.allocated_bytes();
    let prompt: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 101).collect();
    let parts = Arc::new(AtomicUsize::new(0));
    let (told, go_on) = (parts.clone(), std::sync::mpsc::channel::<()>());
    let go_on = (go_on.0, std::sync::Mutex::new(go_on.1));
    let watch = move |_, _| {
        // At the second part it waits until the stream is dropped.
        if told.fetch_add(1, Ordering::SeqCst) == 1 {
            let _ = go_on.1.lock().unwrap().recv();
        }
    };
    let tokens = model.stream_ids(&[&prompt], &long(8).progress(watch));
    wait_until("the second part", || parts.load(Ordering::SeqCst) == 2);
    drop(tokens);
    drop(go_on.0);
    wait_until("memory", || gpu.allocated_bytes() == before);
    assert_eq!(parts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_timeout_and_an_abort_end_a_generation_between_tokens() {
    let gpu = plain_gpu();
    let model = prose(&gpu);
    let before = gpu.allocated_bytes();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = |seen: &Arc<AtomicUsize>| {
        let seen = seen.clone();
        move |_: &headwise::Token| {
            seen.fetch_add(1, Ordering::SeqCst);
            ControlFlow::Continue(())
        }
    };
    let options = long(500);
    let generating = model.generate_ids(&[&[1, 2, 3]], &options, count(&seen));
    // Dropping it ends it.
    assert!(tokio::time::timeout(Duration::from_millis(100), generating).await.is_err());
    assert!(seen.swap(0, Ordering::SeqCst) < 500);
    assert_eq!(gpu.allocated_bytes(), before);

    let (other, counting) = (model.clone(), count(&seen));
    let handle = Arc::new(OnceLock::<tokio::task::AbortHandle>::new());
    let (own, tokens) = (handle.clone(), seen.clone());
    let abort_at_third = move |token: &headwise::Token| {
        let flow = counting(token);
        if tokens.load(Ordering::SeqCst) == 3 {
            own.get().unwrap().abort();
        }
        flow
    };
    let task =
        tokio::spawn(async move { other.generate_ids(&[&[1, 2, 3]], &long(500), abort_at_third).await });
    // On one thread it does not begin before this one waits.
    handle.set(task.abort_handle()).unwrap();
    assert!(task.await.unwrap_err().is_cancelled());
    // It ends where it waits for the fourth.
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert_eq!(gpu.allocated_bytes(), before);
    same(
        &model.generate_ids(&[&[1, 2, 3]], &long(9), on).await.unwrap(),
        &block_on(model.generate_ids(&[&[1, 2, 3]], &long(9), on)).unwrap(),
    );
}

#[tokio::test]
async fn other_tasks_of_a_thread_have_a_turn_at_every_token() {
    let model = prose(&plain_gpu());
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    // Two generations, too.
    let write = async || {
        let mut at = Vec::new();
        let show = |_: &headwise::Token| {
            at.push(turns.load(Ordering::SeqCst));
            ControlFlow::Continue(())
        };
        let written = model.generate_ids(&[&[1, 2, 3]], &long(24), show).await.unwrap();
        (written, at)
    };
    let ((one, at), (two, _)) = tokio::join!(write(), write());
    assert_eq!(at.len(), 24);
    assert!(at.windows(2).all(|pair| pair[0] < pair[1]), "{at:?}");
    same(&one, &two);
    other.abort();
}

/// Milliseconds between a ticker's turns, of which nine in ten are no longer, while `work` runs.
async fn gap(work: impl Future<Output = ()>) -> f64 {
    let mut work = pin!(work);
    let (mut gaps, mut last) = (Vec::new(), Instant::now());
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = &mut work => break,
            _ = tick.tick() => {
                gaps.push(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
        }
    }
    gaps.sort_by(f64::total_cmp);
    gaps[gaps.len() * 9 / 10]
}

#[tokio::test]
async fn a_ticker_of_the_thread_that_reads_a_stream_ticks_on() {
    let model = prose(&plain_gpu());
    let idle = gap(tokio::time::sleep(Duration::from_millis(300))).await;
    let reading = gap(async {
        let mut tokens = model.stream(PROMPT, &long(48));
        while let Some(token) = tokens.next().await {
            token.unwrap();
        }
    });
    let reading = reading.await;
    // What a busy machine costs without a stream, it costs with one.
    assert!(reading <= 20.0_f64.max(4.0 * idle), "{reading} ms with a stream, {idle} ms without");
}

#[test]
fn a_handle_that_was_used_ends_every_task_before_it_submits_anything() {
    let gpu = plain_gpu();
    let used = Cancel::new();
    used.cancel();
    let load = |source| block_on(Model::load(&gpu, &source, LoadOptions::new())).unwrap();
    let refused = block_on(Model::load(&gpu, &tiny(), LoadOptions::new().cancel(&used)));
    assert!(matches!(refused, Err(Error::Cancelled)), "{refused:?}");

    let model = load(tiny()).cancelled_by(&used);
    let ids: &[&[u32]] = &[&[1, 2, 3], &[4, 5]];
    let generation = block_on(model.generate_ids(ids, &Generate::new(), on)).unwrap();
    assert_eq!((generation.ids, generation.stopped), (vec![vec![]; 2], vec![StopReason::Cancelled; 2]));
    assert_eq!(generation.counters.passes, 0);
    let logits = block_on(model.logits(ids)).unwrap();
    assert!(logits.len() == 2 && logits.iter().all(|one| one.values.is_empty() && one.routes.is_empty()));
    assert!(block_on(model.routes(ids[0])).unwrap().is_empty());
    let mut session = model.session(headwise::SessionOptions::new()).unwrap();
    session.forward(&[headwise::Run::ids(0, &[1, 2])]).unwrap();
    assert!(matches!(block_on(session.logits(0)), Err(Error::Cancelled)));
    assert_eq!((session.position(0).unwrap(), session.counters().passes), (0, 0));

    let model = load(Source::demo_fill()).cancelled_by(&used);
    let filled = block_on(model.fill("Open the [MASK]", 2)).unwrap();
    assert!(filled.masks.is_empty() && !filled.ids.is_empty());
    let model = load(Source::demo_classify()).cancelled_by(&used);
    let images = vec![Image::new(1, 1, 1, vec![0]).unwrap(); 3];
    let found = block_on(model.classify(&images, 1)).unwrap();
    assert!(found.len() == 3 && found.iter().all(|one| one.classes.is_empty() && one.routes.is_empty()));
    let model = load(Source::demo_translate());
    for (model, options) in
        [(model.cancelled_by(&used), Translate::new()), (model.clone(), Translate::new().cancel(&used))]
    {
        let mut told = Vec::new();
        let translated =
            block_on(model.translate(&["Open", "Close the file"], &options, |done, _| told.push(done)));
        let translated = translated.unwrap();
        assert!(translated.iter().all(|one| one.ids.is_empty() && one.stopped == StopReason::Cancelled));
        assert_eq!((translated.len(), told), (2, vec![0]));
    }
    // A handle of its own still works.
    assert!(used.is_cancelled() && !Cancel::new().is_cancelled() && used.child().is_cancelled());
    let ended = block_on(model.translate(&["Open"], &Translate::new(), |_, _| ())).unwrap();
    assert_eq!(ended[0].stopped, StopReason::StopToken);
}

#[test]
fn what_was_read_before_a_handle_is_cancelled_is_kept() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 101).collect();
    let sequences: &[&[u32]] = &[&ids[..40], &ids[..50], &ids[..60]];
    let whole = block_on(model.logits_in_steps(sequences, 32)).unwrap();
    let cancel = Cancel::new();
    let cancelled = model.cancelled_by(&cancel);
    let mut reading = pin!(cancelled.logits_in_steps(sequences, 32));
    // It waits for the first time when the first step is submitted.
    let waits = block_on(poll_fn(|context| Poll::Ready(reading.as_mut().poll(context).is_pending())));
    assert!(waits);
    cancel.cancel();
    let kept = block_on(reading).unwrap();
    assert_eq!(kept.iter().map(|one| one.routes.len()).sum::<usize>(), 32);
    assert_eq!(kept.len(), 3);
    for (kept, whole) in kept.iter().zip(&whole) {
        assert_eq!(kept.values, whole.values[..kept.routes.len() * kept.vocab]);
        assert_eq!(kept.routes, whole.routes[..kept.routes.len()]);
    }

    // Loading, after the first bytes.
    let gpu = plain_gpu();
    for warm_up in [false, true] {
        let cancel = Cancel::new();
        let handle = cancel.clone();
        let stop = move |done, _| {
            if done > 0 {
                handle.cancel()
            }
        };
        let options = LoadOptions::new().progress(stop).cancel(&cancel).warm_up(warm_up);
        let result = block_on(Model::load(&gpu, &Source::demo(), options));
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert_eq!(gpu.allocated_bytes(), 0);
    }
}

#[test]
fn a_translation_that_is_cancelled_is_what_there_was_by_then() {
    let model = load(&plain_gpu(), &Source::demo_translate()).unwrap();
    let texts = ["Do you want to save the changes to this document before closing?", "Open the file"];
    let options = Translate::new().batch(1);
    let whole = block_on(model.translate(&texts, &options, |_, _| ())).unwrap();
    let cancel = Cancel::new();
    // The shorter one comes first; the other is not begun.
    let stop = |done, _| {
        if done == 1 {
            cancel.cancel()
        }
    };
    let kept = block_on(model.translate(&texts, &options.clone().cancel(&cancel), stop)).unwrap();
    assert_eq!((&kept[1].text, kept[1].stopped), (&whole[1].text, StopReason::StopToken));
    assert!(kept[0].ids.is_empty() && kept[0].stopped == StopReason::Cancelled);
    let cut = block_on(model.translate(&texts, &options.clone().max_new(2), |_, _| ())).unwrap();
    assert!(cut.iter().all(|one| one.ids.len() == 2 && one.stopped == StopReason::MaxNew));

    // In its midst: after the source and two tokens.
    let cancel = Cancel::new();
    let cancelled = model.cancelled_by(&cancel);
    let mut translating = pin!(cancelled.translate(&texts[..1], &options, |_, _| ()));
    block_on(async {
        for _ in 0..2 {
            assert!(poll_fn(|context| Poll::Ready(translating.as_mut().poll(context).is_pending())).await);
        }
    });
    cancel.cancel();
    let kept = block_on(translating).unwrap().remove(0);
    assert_eq!((&kept.ids[..], kept.stopped), (&whole[0].ids[..2], StopReason::Cancelled));
}
