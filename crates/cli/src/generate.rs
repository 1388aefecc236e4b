//! `headwise generate`

use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    time::Instant,
};

use clap::Args;
use headwise::{Cancel, Generate, Model, Token, Tokenizer};

use super::{
    args::{ModelArgs, Shared},
    choosing::Choosing,
    demo::Demo,
    failure::Failure,
    heads::{self, Painter},
    ids::Ids,
    interrupt, numbers, output, progress,
    prompt::Prompt,
    report::Report,
    transcript::{Transcript, Words},
};

/// Continue a text
#[derive(Args)]
#[command(after_help = "The text goes to stdout as it comes, after the prompt; speeds go to stderr. \
        Ctrl-C ends the text.\n\n\
        Example:\n  headwise generate \"The king shall\" --max-new 40 --seed 7")]
pub struct GenerateArgs {
    /// Text to continue [default: read from stdin, less one line break at its end]
    #[arg(conflicts_with = "ids")]
    pub prompt: Option<String>,
    /// Tokens to generate at the most
    #[arg(long, value_name = "N", default_value = "64", value_parser = numbers::whole::<usize>)]
    pub max_new: usize,
    #[command(flatten)]
    pub choosing: Choosing,
    /// With --json: how likely each new token and the N likeliest were
    #[arg(long, value_name = "N", requires = "json", value_parser = numbers::whole::<u32>)]
    pub logprobs: Option<u32>,
    /// Continue these token ids instead of a text
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    pub ids: Option<Ids>,
    /// Print only the new ids, on one line
    #[arg(long, conflicts_with_all = ["json", "show_heads"])]
    pub print_ids: bool,
    /// Colour each token by the head experts it chose; word[3,5] where there are no colours
    #[arg(long)]
    pub show_heads: bool,
    /// Layer whose head experts are shown, from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = numbers::whole::<usize>)]
    pub layer: usize,
    /// Print one JSON object at the end; with --show-heads it has the routes of every layer
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

pub fn run(args: &GenerateArgs, shared: &Shared) -> Result<(), Failure> {
    // Before a model is loaded for nothing.
    options(args, &Cancel::new()).check()?;
    let prompt = Prompt::read("generate", args.prompt.as_ref(), args.ids.as_ref())?;
    let start = Instant::now();
    let model = args.model.load(shared, Demo::Write)?;
    let load = start.elapsed();
    heads::check_layer(args.layer, model.info())?;
    let ids = prompt.ids(&model)?;

    let mut transcript = transcript(args, &model, &prompt);
    let mut failed = None;
    let cancel = interrupt::answer();
    let on_token = |token: &Token| match transcript.add(token) {
        Ok(()) => ControlFlow::Continue(()),
        Err(failure) => {
            failed = Some(failure);
            ControlFlow::Break(())
        }
    };
    let mut options = options(args, &cancel);
    if !args.show_heads {
        // With heads, the prompt's own tokens are shown as they are read.
        options = options.progress(progress::bar_of_tokens("reading", shared.quiet));
    }
    let generated = match &prompt {
        Prompt::Text(text) => headwise::block_on(model.generate(text, &options, on_token))?,
        Prompt::Ids(ids) => headwise::block_on(model.generate_ids(&[ids], &options, on_token))?,
    };
    if let Some(failure) = failed {
        return Err(failure);
    }
    let transcript = transcript.finish(&generated.text.concat())?;
    if args.json {
        output::json(&Report::new(&model, &ids, &transcript, &generated, load))?;
    }
    if !shared.quiet {
        let adapter = model.gpu().capabilities();
        let speeds = transcript.speeds(ids.len());
        // Losing a remark is no reason to fail.
        let _ = writeln!(io::stderr(), "{speeds}; {} ({})", adapter.name, adapter.backend);
    }
    Ok(())
}

fn options(args: &GenerateArgs, cancel: &Cancel) -> Generate {
    let mut options = args.choosing.options(args.max_new).cancel(cancel);
    if args.show_heads {
        options = options.with_routes();
    }
    match args.logprobs {
        Some(n) => options.logprobs(n),
        None => options,
    }
}

/// What will be printed as tokens come, by the options given.
fn transcript(args: &GenerateArgs, model: &Model, prompt: &Prompt) -> Transcript {
    let terminal = io::stdout().is_terminal();
    let tokenizer = model.tokenizer().ok().filter(|_| !args.print_ids);
    let mut words = if tokenizer.is_some() { Words::Text } else { Words::ids() };
    let mut head = String::new();
    let painter = args.show_heads.then(|| Painter::new(args.layer, terminal));
    if let Some(painter) = &painter {
        head = painter.legend(model.info());
    } else if !args.print_ids {
        // The prompt's tokens are reported only with routes. Decoding may change spaces; the user's own text is the truth.
        let mut stream = tokenizer.map(Tokenizer::stream);
        let mut text_of = |id| stream.as_mut().map(|stream| stream.push(id)).unwrap_or_default();
        match prompt {
            Prompt::Text(text) => head.clone_from(text),
            Prompt::Ids(ids) => head.extend(ids.iter().map(|&id| words.push(id, &text_of(id)))),
        }
    }
    Transcript::new(words, painter, head, args.json)
}
