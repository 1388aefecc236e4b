//! `headwise classify`

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use headwise::{Class, Error, Image, Model};
use serde::Serialize;

use super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, WithEdits},
    failure::Failure,
    image, numbers,
    output::{self, percent},
};

/// Say what images show
#[derive(Args)]
#[command(
    after_help = "Images are PNG, or PGM and PPM in their binary forms, of any size; transparent parts count as \
        black. The built-in model was trained on Fashion-MNIST: single clothes, bright on black.\n\n\
        Example:\n  headwise classify shirt.png bag.png --top 1"
)]
pub struct ClassifyArgs {
    /// Image files
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Classes for each image, 16 at the most [default: 3, or all if the model has fewer]
    #[arg(long, value_name = "N", value_parser = numbers::whole::<usize>)]
    top: Option<usize>,
    /// Turn dark into bright and bright into dark first, for dark things on bright ground
    #[arg(long)]
    invert: bool,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

#[derive(Serialize)]
struct Report {
    file: String,
    /// The likeliest first.
    classes: Vec<Class>,
}

/// Images are classified in pieces of about so many pixels.
const PIECE: usize = 64 << 20;

pub fn run(args: &ClassifyArgs, shared: &Shared) -> Result<(), Failure> {
    let mut model = None;
    let (mut reports, mut files, mut images, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (index, file) in args.images.iter().enumerate() {
        let image = image::read(file, args.invert)?;
        bytes += image.size().0 * image.size().1;
        files.push(file.display().to_string());
        images.push(image);
        if bytes < PIECE && index + 1 < args.images.len() {
            continue;
        }
        // Not before the first images: a wrong name needs no GPU to be found.
        let model = match &mut model {
            Some(model) => model,
            none => none.insert(args.model.load(shared, Demo::Classify)?),
        };
        let top = args.top.unwrap_or((model.info().vocab as usize).min(3));
        reports.extend(classify(model, &mut files, &images, top)?);
        images.clear();
        bytes = 0;
    }
    match (&model, args.json) {
        (Some(model), true) => {
            let reports = reports.into_iter().map(|report| WithEdits::new(report, model.edits()));
            output::json(&reports.collect::<Vec<_>>())
        }
        _ => output::line(&describe(&reports)),
    }
}

fn classify(
    model: &Model,
    files: &mut Vec<String>,
    images: &[Image],
    top: usize,
) -> Result<Vec<Report>, Error> {
    let found = headwise::block_on(model.classify(images, top))?;
    let report = |(file, found): (String, headwise::Classification)| Report { file, classes: found.classes };
    Ok(files.drain(..).zip(found).map(report).collect())
}

/// A line for each image.
fn describe(reports: &[Report]) -> String {
    let terminal = io::stdout().is_terminal();
    let class = |class: &Class| {
        let label = output::fit_to_print(&class.label, terminal);
        format!("{label} {}", percent(class.probability).trim_start())
    };
    let row = |report: &Report| {
        let classes: Vec<String> = report.classes.iter().map(class).collect();
        (report.file.clone(), classes.join(", "))
    };
    let rows: Vec<(String, String)> = reports.iter().map(row).collect();
    let rows: Vec<(&str, String)> =
        rows.iter().map(|(file, classes)| (file.as_str(), classes.clone())).collect();
    output::table(&rows)
}
