//! `headwise generate`

use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    time::Instant,
};

use headwise::{Cancel, Generate, Model, Source, Token};

use super::{
    args::{GenerateArgs, Shared},
    failure::Failure,
    heads::{self, Painter},
    interrupt, output, progress,
    prompt::Prompt,
    report::Report,
    transcript::{Transcript, Words},
};

pub fn run(args: &GenerateArgs, shared: &Shared) -> Result<(), Failure> {
    // Before a model is loaded for nothing.
    options(args, &Cancel::new()).check()?;
    let prompt = Prompt::read("generate", args.prompt.as_ref(), args.ids.as_ref())?;
    let start = Instant::now();
    let model = args.model.load(shared, Source::demo)?;
    let load = start.elapsed();
    heads::check_layer(args.layer, model.info())?;
    let ids = prompt.ids(&model)?;

    let mut transcript = transcript(args, &model, &prompt, &ids);
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
    let generated = pollster::block_on(model.generate_ids(&[&ids], &options, on_token))?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let transcript = transcript.finish()?;
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
    let mut options = Generate::new()
        .max_new(args.max_new)
        .temperature(args.temperature)
        .top_k((args.top_k > 0).then_some(args.top_k))
        .top_p(args.top_p)
        .seed(args.seed)
        .cancel(cancel);
    if args.greedy {
        options = options.greedy();
    }
    if args.show_heads {
        options = options.with_routes();
    }
    options
}

/// What will be printed as tokens come, by the options given.
fn transcript<'a>(args: &GenerateArgs, model: &'a Model, prompt: &Prompt, ids: &[u32]) -> Transcript<'a> {
    let terminal = io::stdout().is_terminal();
    let mut words = match model.tokenizer() {
        Ok(tokenizer) if !args.print_ids => Words::text(tokenizer),
        _ => Words::ids(),
    };
    let mut head = String::new();
    let painter = args.show_heads.then(|| Painter::new(args.layer, terminal));
    if let Some(painter) = &painter {
        head = painter.legend(model.info());
    } else if !args.print_ids {
        // The prompt's tokens are reported only with routes. Decoding may change spaces; the user's own text is the truth.
        match prompt {
            Prompt::Text(text) => {
                words.go_on_from(ids);
                head.clone_from(text);
            }
            Prompt::Ids(ids) => head.extend(ids.iter().map(|&id| words.push(id))),
        }
    }
    Transcript::new(words, painter, head, args.json)
}
