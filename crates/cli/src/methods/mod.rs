//! `headwise heads …` and `headwise experts …`: published analyses.

mod steer;
mod task;

use std::{fmt::Display, ops::Range, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use headwise::{
    Error, Image, Model, Score, block_on,
    methods::{
        Definition, Hunt, Pair, Path, Retrieval, Sample, divergence, expert_difference, importance,
        indicators, influence, patch, patterns, repeated, retrieval, rings,
    },
    probes::{Address, Capture, Change, Positions},
};
use serde::Serialize;

pub use task::{TaskCommand, run as task};

use super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, WithEdits, plan_file},
    failure::Failure,
    image,
    lines::{Lines, bad, numbered},
    output,
};

/// Measure what heads do
#[derive(Args)]
pub struct HeadsArgs {
    #[command(subcommand)]
    what: Heads,
}

#[derive(Subcommand)]
enum Heads {
    /// How much each head looks at the token before, at earlier tokens of the same kind, and behind those
    #[command(after_help = "Example:\n  headwise heads patterns --repeat 40")]
    Patterns(TextArgs),
    /// How its heads spread their weight: entropy, Frobenius norm, the first token, the nearest ones
    #[command(after_help = "Example:\n  headwise heads indicators \"The king shall reign for ever\"")]
    Indicators(TextArgs),
    /// What the output loses without each head: loss, probability, divergence, distance
    #[command(after_help = "Example:\n  headwise heads importance \"The king shall reign for ever\"")]
    Importance(TextArgs),
    /// Which heads fetch what comes next
    Retrieval(RetrievalArgs),
    /// Which heads look at a context: how much their output changes without it
    Divergence(DivergenceArgs),
    /// How much texts need some heads: their loss with those heads looking at all alike
    Influence(InfluenceArgs),
    /// Which heads carry the difference between two prompts
    Patch(PatchArgs),
    /// How far the heads of an image model look
    Rings(RingsArgs),
    /// Go on with a text, away from what the model says without some heads
    Guide(steer::GuideArgs),
    /// Write the edits that let the heads speak louder that look at a context
    Reinforce(steer::ReinforceArgs),
    /// Search for the heads whose change lowers, or raises, the loss of texts most
    Hunt(HuntArgs),
}

/// Texts, and how to print what is found.
#[derive(Args)]
struct TextArgs {
    /// Texts to read
    texts: Vec<String>,
    /// File of texts, one a line
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read so many random tokens, twice over
    #[arg(long, value_name = "TOKENS")]
    repeat: Option<usize>,
    #[command(flatten)]
    print: PrintArgs,
}

#[derive(Args)]
struct PrintArgs {
    /// Print the best so many only
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

#[derive(Args)]
#[command(
    after_help = "Copied: the share of the text's tokens, behind the first --context of them, that a head's largest weight \
        points to. Needle (with --needle): copies from within these tokens, by their number. SCORES is read and \
        written as Retrieval_Head does: {\"layer-head\": [a score for each text]}.\n\n\
        Example:\n  headwise heads retrieval --repeat 40 --out scores.json"
)]
struct RetrievalArgs {
    #[command(flatten)]
    texts: TextArgs,
    /// Tokens at the start that are not to be copied [default: half of them]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// The tokens to be copied: from the first of them to before the end, counted from 0
    #[arg(long, value_name = "FIRST..END", value_parser = range::<usize>)]
    needle: Option<Range<usize>>,
    /// Show such a file instead of computing one
    #[arg(long, value_name = "SCORES.json", conflicts_with_all = ["texts", "file", "repeat", "context", "needle"])]
    from: Option<PathBuf>,
    /// Write such a file
    #[arg(long, value_name = "SCORES.json")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Both texts end alike; --without lacks what --with has.\n\n\
        Example:\n  headwise heads divergence --with \"Anne is tall. Anne is\" --without \"Anne is\"")]
struct DivergenceArgs {
    /// The text with its context
    #[arg(long, value_name = "TEXT")]
    with: String,
    /// The same without
    #[arg(long, value_name = "TEXT")]
    without: String,
    #[command(flatten)]
    print: PrintArgs,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  headwise heads influence \"The king shall reign\" --heads L1H2 --heads L2H0"
)]
struct InfluenceArgs {
    /// The heads
    #[arg(long, value_name = "L1H2", required = true)]
    heads: Vec<Address>,
    /// What becomes of them
    #[arg(long, value_name = "CHANGE", default_value = "uniform")]
    change: Change,
    #[command(flatten)]
    texts: TextArgs,
}

#[derive(Args)]
#[command(after_help = "Example:\n  headwise heads hunt --repeat 40 --change uniform --rounds 2 --raise")]
struct HuntArgs {
    /// Search among these, such as L1H* [default: all]
    #[arg(long, value_name = "L1H2")]
    heads: Vec<Address>,
    /// What becomes of them
    #[arg(long, value_name = "CHANGE", default_value = "scale=0")]
    change: Change,
    /// Add so many in each round
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    k: usize,
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: usize,
    /// Search for the heads that raise the loss
    #[arg(long)]
    raise: bool,
    /// End where one more makes it worse
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    texts: TextArgs,
}

#[derive(Args)]
#[command(
    after_help = "The effect is the share of the difference between the two answers' logits that a head carries from the other \
        prompt into this one. --direct: with all other heads as they were. --into: by what these heads read of it.\n\n\
        Example:\n  headwise heads patch \"The king\" --other \"The queen\" --answers \" his\" \" her\""
)]
struct PatchArgs {
    /// The prompt that is worked on
    prompt: String,
    /// One of as many tokens, where values come from
    #[arg(long, value_name = "PROMPT")]
    other: String,
    /// What follows the one, and the other
    #[arg(long, value_names = ["ONE", "OTHER"], num_args = 2, required = true)]
    answers: Vec<String>,
    /// The direct way to the end alone
    #[arg(long)]
    direct: bool,
    /// The way into what these heads read, such as L3H*:k
    #[arg(long, value_name = "L3H*:k", conflicts_with = "direct")]
    into: Vec<Capture>,
    #[command(flatten)]
    print: PrintArgs,
}

#[derive(Args)]
#[command(after_help = "Example:\n  headwise heads rings shoe.png bag.png")]
struct RingsArgs {
    /// PNG, PGM or PPM files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    print: PrintArgs,
}

/// Measure what experts do
#[derive(Args)]
pub struct ExpertsArgs {
    #[command(subcommand)]
    what: Experts,
}

#[derive(Subcommand)]
enum Experts {
    /// Which experts one kind of text uses more than another (MoTE)
    Difference(DifferenceArgs),
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  headwise experts difference --class psalms.txt --others rust.txt --top 10"
)]
struct DifferenceArgs {
    /// File of texts of the class, one a line
    #[arg(long, value_name = "FILE")]
    class: PathBuf,
    /// File of other texts, one a line
    #[arg(long, value_name = "FILE")]
    others: PathBuf,
    #[command(flatten)]
    print: PrintArgs,
}

/// `FIRST..END`
fn range<T: FromStr>(text: &str) -> Result<Range<T>, String> {
    let parse = || {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    };
    parse().ok_or_else(|| "expected FIRST..END, such as 3..9".to_owned())
}

impl TextArgs {
    fn load(&self, shared: &Shared) -> Result<Model, Error> {
        self.print.model.load(shared, Demo::Write)
    }

    /// The ids of all texts.
    fn ids(&self, model: &Model) -> Result<Vec<Vec<u32>>, Error> {
        let mut all = self.texts.iter().map(|text| model.encode(text)).collect::<Result<Vec<_>, _>>()?;
        if let Some(file) = &self.file {
            all.extend(file_ids(file, model)?);
        }
        if let Some(tokens) = self.repeat {
            let most = model.info().context as usize / 2;
            if !(1..=most).contains(&tokens) {
                let (found, expected) =
                    (tokens.to_string(), format!("1 to {most}, half of the model's context"));
                return Err(Error::Argument { name: "repeat", found, expected });
            }
            all.push(repeated(model.info().vocab, tokens, 0));
        }
        match all.is_empty() {
            false => Ok(all),
            true => {
                let expected = "a TEXT, --file or --repeat".to_owned();
                Err(Error::Argument { name: "texts", found: "none".to_owned(), expected })
            }
        }
    }
}

/// The ids of each line of a file.
fn file_ids(path: &std::path::Path, model: &Model) -> Result<Vec<Vec<u32>>, Error> {
    let name = path.display().to_string();
    let ids = |(index, line): (usize, &String)| match model.encode(line)? {
        ids if ids.is_empty() => Err(bad(&name, &numbered(index), "no tokens", "a text")),
        ids => Ok(ids),
    };
    Lines::read(path)?.lines.iter().enumerate().map(ids).collect()
}

fn slices(ids: &[Vec<u32>]) -> Vec<&[u32]> {
    ids.iter().map(Vec::as_slice).collect()
}

impl PrintArgs {
    /// As [`rows`](Self::rows), those with the most in the first column first.
    fn ranked<T: Serialize>(
        &self,
        mut found: Vec<T>,
        names: &[&str],
        cells: impl Fn(&T) -> (String, Vec<f64>),
    ) -> Result<(), Failure> {
        let first = |one: &T| cells(one).1.first().copied().unwrap_or(0.0);
        found.sort_by(|a, b| first(b).total_cmp(&first(a)));
        self.rows(found, names, cells)
    }

    /// A row for each, a name and numbers.
    fn rows<T: Serialize>(
        &self,
        mut found: Vec<T>,
        names: &[&str],
        cells: impl Fn(&T) -> (String, Vec<f64>),
    ) -> Result<(), Failure> {
        found.truncate(self.top.unwrap_or(usize::MAX));
        if self.json {
            #[derive(Serialize)]
            struct Report<T> {
                found: Vec<T>,
            }
            return output::json(&WithEdits::new(Report { found }, &self.model.edits()?));
        }
        let mut rows = vec![names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>()];
        rows.extend(found.iter().map(cells).map(|(name, values)| {
            std::iter::once(name).chain(values.iter().map(|value| number(*value))).collect()
        }));
        output::line(&output::columns(&rows, &[0]))
    }
}

fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() >= 10.0 { format!("{value}") } else { format!("{value:.4}") }
}

/// One sentence on stderr, where it may say something.
fn remark(shared: &Shared, text: impl Display) {
    if !shared.quiet {
        eprintln!("headwise: {text}");
    }
}

pub fn heads(args: &HeadsArgs, shared: &Shared) -> Result<(), Failure> {
    match &args.what {
        Heads::Patterns(args) => {
            let model = args.load(shared)?;
            let ids = args.ids(&model)?;
            let found = block_on(patterns(&model, &slices(&ids)))?;
            args.print.ranked(found, &["head", "induction", "duplicate", "previous", "tokens"], |one| {
                let values = vec![one.induction, one.duplicate, one.previous, one.tokens as f64];
                (one.at.to_string(), values)
            })
        }
        Heads::Indicators(args) => {
            let model = args.load(shared)?;
            let ids = args.ids(&model)?;
            let found = block_on(indicators(&model, &slices(&ids)))?;
            let names = ["head", "entropy", "frobenius", "sink", "-0", "-1", "-2", "-3"];
            args.print.ranked(found, &names, |one| {
                let values = [one.entropy, one.frobenius, one.sink].into_iter().chain(one.local);
                (one.at.to_string(), values.collect())
            })
        }
        Heads::Importance(args) => {
            let model = args.load(shared)?;
            let ids = args.ids(&model)?;
            let found = block_on(importance(&model, &slices(&ids), None))?;
            args.print.ranked(found, &["head", "loss", "probability", "divergence", "distance"], |one| {
                (one.at.to_string(), vec![one.loss, one.probability, one.divergence, one.distance])
            })
        }
        Heads::Retrieval(args) => fetched(args, shared),
        Heads::Divergence(args) => {
            let model = args.print.model.load(shared, Demo::Write)?;
            let (with, without) = (model.encode(&args.with)?, model.encode(&args.without)?);
            let found = block_on(divergence(&model, &with, &without))?;
            args.print.ranked(found, &["head", "l2", "relative", "cosine"], |one| {
                (one.at.to_string(), vec![one.l2, one.relative, one.cosine])
            })
        }
        Heads::Influence(args) => {
            let model = args.texts.load(shared)?;
            let ids = args.texts.ids(&model)?;
            let texts = slices(&ids);
            let found = block_on(influence(&model, &args.heads, args.change.clone(), &texts, &Score::new()))?;
            let found: Vec<_> = found.into_iter().enumerate().collect();
            args.texts.print.ranked(found, &["text", "score", "loss", "masked"], |(text, one)| {
                let values = one.map(|one| vec![one.score, one.loss, one.masked]);
                (text.to_string(), values.unwrap_or_default())
            })
        }
        Heads::Patch(args) => carried(args, shared),
        Heads::Rings(args) => {
            let images: Vec<Image> =
                args.images.iter().map(|file| image::read(file, false)).collect::<Result<_, _>>()?;
            let model = args.print.model.load(shared, Demo::Classify)?;
            let found = block_on(rings(&model, &images))?;
            let grid = found.first().map_or(0, |one| one.rings.len());
            let names: Vec<String> = (0..grid).map(|k| k.to_string()).collect();
            let names: Vec<&str> =
                ["head", "distance", "class"].into_iter().chain(names.iter().map(String::as_str)).collect();
            args.print.ranked(found, &names, |one| {
                let values = [one.distance(), one.class].into_iter().chain(one.rings.iter().copied());
                (one.at.to_string(), values.collect())
            })
        }
        Heads::Guide(args) => steer::guide(args, shared),
        Heads::Reinforce(args) => steer::reinforce(args, shared),
        Heads::Hunt(args) => hunted(args, shared),
    }
}

fn fetched(args: &RetrievalArgs, shared: &Shared) -> Result<(), Failure> {
    let scores = match &args.from {
        Some(file) => plan_file(file, "scores", Retrieval::from_json)?,
        None => {
            let model = args.texts.load(shared)?;
            let samples = args.texts.ids(&model)?.into_iter().map(|ids| {
                let (first, end) = (args.context.unwrap_or(ids.len() / 2).max(1), ids.len());
                Sample { ids, answer: first..end, needle: args.needle.clone() }
            });
            let definition = if args.needle.is_some() { Definition::Needle } else { Definition::Copied };
            block_on(retrieval(&model, &samples.collect::<Vec<_>>(), definition))?
        }
    };
    if let Some(out) = &args.out {
        headwise::internal::NewFile::write(out, scores.to_json().as_bytes())?;
    }
    args.texts
        .print
        .rows(scores.ranked(), &["head", "retrieval"], |(at, score)| (at.to_string(), vec![*score]))
}

fn carried(args: &PatchArgs, shared: &Shared) -> Result<(), Failure> {
    let path = match args.into.first() {
        _ if args.direct => Path::Direct,
        None => Path::Any,
        Some(first)
            if args.into.iter().all(|one| one.what == first.what && one.positions == Positions::All) =>
        {
            Path::Into(first.what, args.into.iter().map(|one| one.at).collect())
        }
        Some(_) => {
            let found = args.into.iter().map(Capture::to_string).collect::<Vec<_>>().join(", ");
            let expected = "q, k or v, the same of all heads, without positions".to_owned();
            return Err(Error::Argument { name: "into", found, expected }.into());
        }
    };
    let model = args.print.model.load(shared, Demo::Write)?;
    let (clean, other) = (model.encode(&args.prompt)?, model.encode(&args.other)?);
    // An answer is what its text adds to the prompt's.
    let first = |(prompt, answer): (&String, &String)| -> Result<u32, Error> {
        let (before, whole) = (model.encode(prompt)?, model.encode(&format!("{prompt}{answer}"))?);
        let expected = "a text with a token of its own behind the prompt".to_owned();
        let missing = || Error::Argument { name: "answer", found: format!("{answer:?}"), expected };
        whole.get(before.len()).copied().ok_or_else(missing)
    };
    let mut answers = [&args.prompt, &args.other].into_iter().zip(&args.answers).map(first);
    let [Some(one), Some(two)] = [answers.next().transpose()?, answers.next().transpose()?] else {
        return Err(Failure::usage("heads patch", "give two --answers"));
    };
    let pair = Pair { clean: &clean, other: &other, answers: [one, two] };
    let found = block_on(patch(&model, &pair, &path))?;
    args.print.ranked(found, &["head", "effect"], |one| (one.at.to_string(), vec![one.effect]))
}

fn hunted(args: &HuntArgs, shared: &Shared) -> Result<(), Failure> {
    let model = args.texts.load(shared)?;
    let ids = args.texts.ids(&model)?;
    let texts = slices(&ids);
    let all = block_on(headwise::methods::heads(&model))?;
    let wanted = |at: &Address| args.heads.is_empty() || args.heads.iter().any(|wanted| wanted.covers(at));
    let candidates: Vec<Address> = all.into_iter().filter(wanted).collect();
    let hunt = Hunt::new(&candidates, args.change.clone()).each(args.k).rounds(args.rounds).stop(args.stop);
    let sign = if args.raise { 1.0 } else { -1.0 };
    let rounds = block_on(hunt.run(async |edits| {
        let mut all = model.edits().clone();
        all.extend(edits.iter().cloned());
        let scored = model.edited(&all)?.score_ids(&texts, &Score::new()).await?;
        let (sum, count) =
            scored.iter().fold((0.0, 0), |(sum, count), one| (sum - one.sum(), count + one.logprobs.len()));
        Ok(sign * sum / count.max(1) as f64)
    }))?;
    remark(shared, format!("{} candidates", candidates.len()));
    args.texts.print.rows(rounds, &["added", "loss"], |round| {
        let added: Vec<String> = round.added.iter().map(Address::to_string).collect();
        (added.join(" "), vec![sign * round.objective])
    })
}

pub fn experts(args: &ExpertsArgs, shared: &Shared) -> Result<(), Failure> {
    let Experts::Difference(args) = &args.what;
    let model = args.print.model.load(shared, Demo::Write)?;
    let (class, others) = (file_ids(&args.class, &model)?, file_ids(&args.others, &model)?);
    let of_class = class.iter().map(|ids| (ids.as_slice(), true));
    let prompts: Vec<(&[u32], bool)> =
        of_class.chain(others.iter().map(|ids| (ids.as_slice(), false))).collect();
    let found = block_on(expert_difference(&model, &prompts))?;
    args.print.ranked(found, &["expert", "difference", "class", "others"], |one| {
        (one.at.to_string(), vec![one.difference, one.class, one.others])
    })
}
