//! A conversation on tokio: each answer has a deadline, and Ctrl-C ends the answer that is being written, then the program.
//!
//! `cargo run --release --example chat`

use std::{
    io::{Write, stdout},
    time::Duration,
};

use headwise::{Chat, ChatTemplate, Generate, Gpu, GpuOptions, Model, Source};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Instant, sleep_until},
};

/// The demo model has read plays, so a conversation is one.
pub(crate) const PLAY: &str = "{% for message in messages %}{{ message['role'] | upper }}. {{ message['content'].strip() }}\n\
    {% endfor %}{% if add_generation_prompt %}ASSISTANT.{% endif %}";

/// A conversation with `model` in the form of `template`.
pub(crate) async fn conversation(model: &Model, template: &str) -> headwise::Result<Chat> {
    let file = serde_json::json!({ "chat_template": template }).to_string();
    let files = vec![("tokenizer_config.json".to_owned(), file.into_bytes())];
    Chat::new(model, ChatTemplate::read(&Source::memory("play", files)).await?, None)
}

/// Answers `line`, handing each piece to `say`, until the answer is whole, the time is up or `interrupt` comes.
pub(crate) async fn answer(
    chat: Chat,
    line: &str,
    options: &Generate,
    time: Duration,
    interrupt: impl Future<Output = ()>,
    mut say: impl FnMut(&str),
) -> headwise::Result<Chat> {
    let mut tokens = chat.stream(line, options);
    let deadline = Instant::now() + time;
    tokio::pin!(interrupt);
    loop {
        tokio::select! {
            token = tokens.next() => match token {
                Some(token) => say(&token?.text),
                None => break,
            },
            _ = sleep_until(deadline) => break,
            _ = &mut interrupt => break,
        }
    }
    // What was said so far stays in the conversation.
    tokens.stop().await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> headwise::Result<()> {
    let gpu = Gpu::new(GpuOptions::new()).await?;
    let model = Model::demo(&gpu).await?;
    let mut chat = conversation(&model, PLAY).await?;
    let options = Generate::new().max_new(80).stop(["\n"]);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        print!("> ");
        let _ = stdout().flush();
        let line = tokio::select! {
            line = lines.next_line() => line.ok().flatten(),
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        let interrupt = async { drop(tokio::signal::ctrl_c().await) };
        chat = answer(chat, &line, &options, Duration::from_secs(10), interrupt, |text| {
            print!("{text}");
            let _ = stdout().flush();
        })
        .await?;
        println!();
    }
    Ok(())
}
