//! Tokens as a stream in an async program, beside other work on one thread: a text is read to its end, a second is ended by a
//! deadline, a third by who reads it.
//!
//! `cargo run --release --example stream -- "The king shall"`

use std::{ops::ControlFlow, time::Duration};

use headwise::{Cancel, Generate, Generation, Gpu, GpuOptions, Model};
use tokio::time::{interval, sleep};

/// What was written.
pub(crate) struct Texts {
    /// A text, as its tokens came, and what was generated in all.
    pub(crate) text: String,
    pub(crate) whole: Generation,
    /// Turns that other work had on the same thread meanwhile.
    pub(crate) turns: u32,
    /// What there was at the deadline.
    pub(crate) by_deadline: Generation,
    /// What there was when nobody read on.
    pub(crate) stopped: Generation,
}

/// Writes three texts behind `prompt`, with `options`.
pub(crate) async fn texts(model: &Model, prompt: &str, options: &Generate) -> headwise::Result<Texts> {
    // Other work of this thread has its turn while a token is awaited.
    let mut tokens = model.stream(prompt, options);
    let (mut text, mut turns) = (String::new(), 0);
    let mut other = interval(Duration::from_millis(1));
    loop {
        tokio::select! {
            token = tokens.next() => match token {
                Some(token) => text += &token?.text,
                None => break,
            },
            _ = other.tick() => turns += 1,
        }
    }
    let whole = tokens.stop().await?;

    // A deadline: the future keeps what there is, where one that is dropped in its midst would lose it.
    let cancel = Cancel::new();
    let writing = model.cancelled_by(&cancel);
    let writing = tokio::spawn({
        let (prompt, options) = (prompt.to_owned(), options.clone().stop_at([]).max_new(100_000));
        async move { writing.generate(&prompt, &options, |_| ControlFlow::Continue(())).await }
    });
    sleep(Duration::from_millis(50)).await;
    cancel.cancel();
    let by_deadline = writing.await.expect("it does not panic")?;

    // Who has read enough stops, or drops the stream.
    let mut tokens = model.stream(prompt, options);
    for _ in 0..3 {
        tokens.next().await.transpose()?;
    }
    let stopped = tokens.stop().await?;
    Ok(Texts { text, whole, turns, by_deadline, stopped })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> headwise::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "She had never".to_owned());
    let gpu = Gpu::new(GpuOptions::new()).await?;
    let model = Model::demo(&gpu).await?;
    let Texts { text, whole, turns, by_deadline, stopped } =
        texts(&model, &prompt, &Generate::new().max_new(48).seed(1)).await?;
    let count = |generation: &Generation| generation.ids[0].len();
    println!("{prompt}{text}\n({} tokens, and {turns} turns for other work)", count(&whole));
    println!("{} tokens by the deadline, {:?}", count(&by_deadline), by_deadline.stopped[0]);
    println!("{} tokens when nobody read on, {:?}", count(&stopped), stopped.stopped[0]);
    Ok(())
}
