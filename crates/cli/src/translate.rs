//! `headwise translate`

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use headwise::{Cancel, Error, Model, Translate, Translation, internal::NewFile};
use serde::Serialize;

use super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, WithEdits},
    failure::Failure,
    heads::{self, Painter},
    interrupt,
    lines::{Lines, check_apart},
    numbers, output, progress,
    prompt::read_text,
    tokens::{self, RoutedToken},
};

/// Translate a text, or a file line by line
#[derive(Args)]
#[command(
    after_help = "The built-in model translates strings of user interfaces from English to German.\n\n\
        Example:\n  headwise translate \"Save changes before closing?\" --show-heads\n  \
        headwise translate --input en.txt --output de.txt --beams 4"
)]
pub struct TranslateArgs {
    /// Text to translate [default: read from stdin, less one line break at its end]
    #[arg(conflicts_with_all = ["input", "output"])]
    text: Option<String>,
    /// Translate this file line by line; empty lines stay empty
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with_all = ["json", "show_heads"])]
    input: Option<PathBuf>,
    /// Write the lines to this file; it appears only when it is complete
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Translations that grow side by side; 1 is greedy, MoA's paper has 4
    #[arg(long, value_name = "N", default_value = "1", value_parser = numbers::whole::<usize>)]
    beams: usize,
    /// Divide the log-probability of a beam by ((5 + tokens) / 6)^A
    #[arg(long, value_name = "A", default_value = "0.6", value_parser = numbers::finite::<f64>)]
    length_penalty: f64,
    /// Tokens of a translation at the most
    #[arg(long, value_name = "N", default_value = "96", value_parser = numbers::whole::<usize>)]
    max_new: usize,
    /// Lines translated at once
    #[arg(long, value_name = "N", default_value = "16", requires = "input", value_parser = numbers::whole::<usize>)]
    batch: usize,
    /// Colour each token by its cross-attention head experts; word[3,5] where there are no colours
    #[arg(long)]
    show_heads: bool,
    /// Layer whose head experts are shown, from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = numbers::whole::<usize>)]
    layer: usize,
    /// Print one JSON object, with the routes of every token of both texts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    /// The ids of the translation, its end token last unless it was cut off.
    ids: &'a [u32],
    /// Σ log p over the length penalty.
    score: f64,
    source_ids: &'a [u32],
    /// Heads of the encoder.
    source_tokens: Vec<RoutedToken<'a>>,
    /// Heads of the decoder, `attention` to the translation so far and `cross` to the source.
    tokens: Vec<RoutedToken<'a>>,
}

pub fn run(args: &TranslateArgs, shared: &Shared) -> Result<(), Failure> {
    match (&args.input, &args.output) {
        (Some(input), Some(output)) => run_lines(args, shared, input, output),
        _ => run_text(args, shared),
    }
}

impl TranslateArgs {
    fn options(&self, cancel: &Cancel) -> Translate {
        Translate::new()
            .beams(self.beams)
            .length_penalty(self.length_penalty)
            .max_new(self.max_new)
            .batch(self.batch)
            .cancel(cancel)
    }
}

fn run_text(args: &TranslateArgs, shared: &Shared) -> Result<(), Failure> {
    let missing = "give a TEXT, or --input and --output, or pipe a text into stdin";
    let text = read_text("translate", args.text.as_ref(), missing)?;
    if text.trim().is_empty() {
        let (found, expected) = ("nothing".to_owned(), "a text to translate".to_owned());
        return Err(Error::Argument { name: "text", found, expected }.into());
    }
    let model = args.model.load(shared, Demo::Translate)?;
    heads::check_layer(args.layer, model.info())?;
    let cancel = interrupt::answer();
    let options = args.options(&cancel).with_routes();
    let start = Instant::now();
    let translations = headwise::block_on(model.translate(&[&text], &options, |_, _| ()))?;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled.into());
    }
    let seconds = start.elapsed().as_secs_f64();
    for translation in &translations {
        print(args, &model, translation)?;
        let tokens = translation.ids.len();
        remark(shared, &model, &format!("{tokens} tokens in {seconds:.2} s"));
    }
    Ok(())
}

fn print(args: &TranslateArgs, model: &Model, translation: &Translation) -> Result<(), Failure> {
    let terminal = io::stdout().is_terminal();
    if !args.json && !args.show_heads {
        return output::line(&output::fit_to_print(&translation.text, terminal));
    }
    let tokenizer = model.tokenizer()?;
    let tokens = tokens::routed(tokenizer, &translation.ids, &translation.routes);
    if !args.json {
        let painter = Painter::new(args.layer, terminal).cross();
        let painted = tokens::painted(&tokens, &painter, terminal);
        return output::line(&format!("{}{painted}", painter.legend(model.info())));
    }
    let Translation { ids, text, score, source_ids, source_routes, .. } = translation;
    let source_tokens = tokens::routed(tokenizer, source_ids, source_routes);
    let report = Report { text, ids, score: *score, source_ids, source_tokens, tokens };
    output::json(&WithEdits::new(report, model.edits()))
}

fn run_lines(args: &TranslateArgs, shared: &Shared, input: &Path, output: &Path) -> Result<(), Failure> {
    NewFile::check(output)?;
    check_apart(input, output)?;
    let file = Lines::read(input)?;
    let model = args.model.load(shared, Demo::Translate)?;
    // An end token is added.
    file.check_lengths(&model, 1)?;
    let cancel = interrupt::answer();
    let options = args.options(&cancel);
    let start = Instant::now();

    let mut translated = vec![String::new(); file.lines.len()];
    let full: Vec<usize> = (0..file.lines.len()).filter(|&i| !file.lines[i].trim().is_empty()).collect();
    let bar = progress::bar_of_lines("translating", shared.quiet);
    let texts: Vec<&str> = full.iter().map(|&index| file.lines[index].as_str()).collect();
    let progress = |done: usize, all: usize| bar(done as u64, all as u64);
    // Of nothing but empty lines there is nothing to translate.
    if !texts.is_empty() {
        for (&index, translation) in
            full.iter().zip(headwise::block_on(model.translate(&texts, &options, progress))?)
        {
            // One line each, whatever the model writes.
            translated[index] = translation.text.replace(['\n', '\r'], " ");
        }
    }
    if cancel.is_cancelled() {
        return Err(Error::Cancelled.into());
    }
    NewFile::write(output, file.text_of(&translated).as_bytes())?;
    let (lines, seconds) = (full.len(), start.elapsed().as_secs_f64());
    let speed = lines as f64 / seconds;
    remark(shared, &model, &format!("{lines} lines in {seconds:.2} s, {speed:.1} lines/s"));
    Ok(())
}

/// Says how fast it went, on stderr.
fn remark(shared: &Shared, model: &Model, text: &str) {
    if !shared.quiet {
        let adapter = model.gpu().capabilities();
        // Losing a remark is no reason to fail.
        let _ = writeln!(io::stderr(), "{text}; {} ({})", adapter.name, adapter.backend);
    }
}
