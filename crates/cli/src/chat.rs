//! `headwise chat`

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    ops::ControlFlow,
};

use clap::Args;
use headwise::{Chat, ChatMessage, ChatTemplate, Error, Generate, Reply, Token};

use super::{
    args::Shared,
    choosing::Choosing,
    demo::Demo,
    edited::TaskArgs,
    failure::{self, Failure},
    interrupt, numbers,
    output::{self, fit_to_print},
    progress,
};

/// The longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// Talk with a model that has a chat template
#[derive(Args)]
#[command(
    after_help = "Each line of stdin is a message, answered on stdout as it comes; what was said is kept. Ctrl-C ends \
        an answer, /reset the conversation, /quit or the end of stdin the command. A message that is too long is an error \
        and the next one is read; of lines from a pipe the exit code is 1 then. The built-in models continue texts and do not \
        chat.\n\n\
        Example:\n  headwise chat --model jetmoe/jetmoe-8b-chat --system \"Answer in one sentence.\""
)]
pub struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at the most
    #[arg(long, value_name = "N", default_value = "512", value_parser = numbers::whole::<usize>)]
    max_new: usize,
    /// Tokens of the conversation at the most [default: the model's context]
    #[arg(long, value_name = "N", value_parser = numbers::whole::<u32>)]
    context: Option<u32>,
    #[command(flatten)]
    choosing: Choosing,
    #[command(flatten)]
    model: TaskArgs,
}

pub fn run(args: &ChatArgs, shared: &Shared) -> Result<(), Failure> {
    let options = args.choosing.options(args.max_new);
    options.check()?;
    // A model that cannot chat is refused before it is loaded, and before its weights are fetched.
    let template = headwise::block_on(ChatTemplate::read(&args.model.source(Demo::Write)?))?;
    let model = args.model.load(shared, Demo::Write)?;
    let mut chat = Chat::new(&model, template, args.context)?;
    chat.set_messages(start(args));
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    // What was wrong with a message is said there and then; the next one may be right.
    let mut wrong = false;
    loop {
        if terminal {
            show("> ")?;
        }
        let line = match read_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error @ Error::Argument { .. }) => {
                failure::print(&error.to_string());
                wrong = true;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => {
                chat.set_messages(start(args));
                continue;
            }
            _ => {}
        }
        let cancel = interrupt::answer();
        let reading = progress::bar_of_tokens("reading", shared.quiet);
        let options = options.clone().cancel(&cancel).progress(reading);
        let answered = answer(&mut chat, &line, &options);
        interrupt::done();
        match answered {
            Ok(reply) if !shared.quiet => remark(&reply),
            Ok(_) => {}
            Err(Failure::Failed(error @ (Error::Argument { .. } | Error::BadFile { .. }))) => {
                failure::print(&error.to_string());
                wrong = true;
            }
            Err(failure) => return Err(failure),
        }
    }
    match (terminal, wrong) {
        // Who was there knows.
        (true, _) => output::line(""),
        (false, true) => Err(Failure::Told),
        (false, false) => Ok(()),
    }
}

/// What every conversation starts with.
fn start(args: &ChatArgs) -> Vec<ChatMessage> {
    args.system.iter().map(|text| ChatMessage::new("system", text.as_str())).collect()
}

/// Shows an answer as it comes.
fn answer(chat: &mut Chat, text: &str, options: &Generate) -> Result<Reply, Failure> {
    let terminal = io::stdout().is_terminal();
    let (mut failed, mut shown) = (None, 0);
    let on_token = |token: &Token| {
        shown += token.text.len();
        match show(&fit_to_print(&token.text, terminal)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        }
    };
    let reply = headwise::block_on(chat.reply(text, options, on_token))?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let rest = reply.text.get(shown..).unwrap_or_default();
    show(&(fit_to_print(rest, terminal) + "\n"))?;
    Ok(reply)
}

fn show(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn remark(reply: &Reply) {
    let (prompt, kept, new) = (reply.prompt_tokens, reply.kept_tokens, reply.ids.len());
    // Losing a remark is no reason to fail.
    let _ = writeln!(io::stderr(), "({} tokens read, {kept} kept, {new} written)", prompt - kept);
}

/// The next line of stdin without its end; none at the end of stdin. What is no line of text is an
/// [`Error::Argument`], and the line after it comes next.
fn read_line() -> Result<Option<String>, Error> {
    let failed = |source| Error::Io { path: "stdin".to_owned(), source };
    let wrong = |found: &str, expected: &str| {
        let (found, expected) = (found.to_owned(), expected.to_owned());
        Error::Argument { name: "line of stdin", found, expected }
    };
    let (mut stdin, mut line) = (io::stdin().lock(), Vec::new());
    stdin.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(failed)?;
    if line.len() as u64 > MAX_LINE {
        if line.last() != Some(&b'\n') {
            stdin.skip_until(b'\n').map_err(failed)?;
        }
        return Err(wrong("more than 1 MiB", "at most 1 MiB"));
    }
    if line.is_empty() {
        return Ok(None);
    }
    let line = String::from_utf8(line).map_err(|_| wrong("bytes that are not UTF-8", "text in UTF-8"))?;
    let line = line.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
    Ok(Some(line.to_owned()))
}
