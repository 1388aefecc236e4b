//! `headwise fill`

use std::io::{self, IsTerminal};

use clap::Args;
use headwise::{Error, Filled, FilledMask, Model};
use serde::Serialize;

use super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, WithEdits},
    failure::Failure,
    heads::{self, Painter},
    numbers,
    output::{self, percent},
    prompt::read_text,
    tokens::{self, RoutedToken},
};

/// Say what may stand behind the masks of a text
#[derive(Args)]
#[command(
    after_help = "The built-in model knows English strings of user interfaces, and its mask is [MASK].\n\n\
        Example:\n  headwise fill \"Could not [MASK] to the server.\""
)]
pub struct FillArgs {
    /// Text with one mask or more [default: read from stdin, less one line break at its end]
    text: Option<String>,
    /// Candidates for each mask, 16 at the most
    #[arg(long, value_name = "N", default_value = "5", value_parser = numbers::whole::<usize>)]
    top: usize,
    /// Colour each token by the head experts it chose, best candidates in place of masks; word[3,5] where there are
    /// no colours
    #[arg(long)]
    show_heads: bool,
    /// Layer whose head experts are shown, from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = numbers::whole::<usize>)]
    layer: usize,
    /// Print one JSON object; with --show-heads it has the routes of every layer
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// The text with the best candidate in place of each mask.
    text: &'a str,
    /// Ids that the model read, and the candidates for each mask.
    #[serde(flatten)]
    filled: &'a Filled,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<RoutedToken<'a>>>,
}

pub fn run(args: &FillArgs, shared: &Shared) -> Result<(), Failure> {
    let text = read_text("fill", args.text.as_ref(), "give a TEXT, or pipe one into stdin")?;
    let model = args.model.load(shared, Demo::Fill)?;
    heads::check_layer(args.layer, model.info())?;
    let filled = headwise::block_on(model.fill(&text, args.top))?;
    let best = with_the_best(&filled);
    let text = model.tokenizer()?.decode(&best)?;
    let tokens = match args.show_heads {
        true => Some(tokens::routed(model.tokenizer()?, &best, &filled.routes)),
        false => None,
    };
    if args.json {
        return output::json(&WithEdits::new(Report { text: &text, filled: &filled, tokens }, model.edits()));
    }
    output::line(&describe(args, &model, &filled, &text, tokens)?)
}

/// The ids with the best candidate in place of each mask.
fn with_the_best(filled: &Filled) -> Vec<u32> {
    let mut ids = filled.ids.clone();
    for mask in &filled.masks {
        if let Some(best) = mask.candidates.first() {
            ids[mask.position] = best.id;
        }
    }
    ids
}

fn describe(
    args: &FillArgs,
    model: &Model,
    filled: &Filled,
    text: &str,
    tokens: Option<Vec<RoutedToken<'_>>>,
) -> Result<String, Error> {
    let terminal = io::stdout().is_terminal();
    let mut parts: Vec<String> = match filled.masks.as_slice() {
        [mask] => vec![candidates(mask, terminal)],
        masks => (1..)
            .zip(masks)
            .map(|(number, mask)| format!("mask {number}\n{}", candidates(mask, terminal)))
            .collect(),
    };
    if let Some(tokens) = tokens {
        let painter = Painter::new(args.layer, terminal);
        let painted = tokens::painted(&tokens, &painter, terminal);
        parts.push(format!("{}{painted}", painter.legend(model.info())));
    } else if filled.masks.len() == 1 {
        parts.push(output::fit_to_print(text, terminal));
    }
    Ok(parts.join("\n\n"))
}

fn candidates(mask: &FilledMask, terminal: bool) -> String {
    let lines = mask.candidates.iter().map(|candidate| {
        let text = output::fit_to_print(&candidate.text, terminal).replace('\n', "↵");
        format!("{}  {text}", percent(candidate.probability))
    });
    lines.collect::<Vec<_>>().join("\n")
}
