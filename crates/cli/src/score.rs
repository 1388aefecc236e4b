//! `headwise score`

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use clap::Args;
use headwise::{
    Cancel, Edit, Edits, Error, Model, Score, Scored,
    internal::{GrowingFile, NewFile, Variants},
    methods::Retrieval,
    probes::{Address, Change},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, plan_file},
    failure::Failure,
    interrupt,
    lines::{LineReader, bad, check_apart, ids_of, numbered},
    progress,
};

/// Write how likely a model finds each text of a file
#[derive(Args)]
#[command(
    after_help = "OUT has a JSON object for each text: `index` (from 0), `tokens`, `logprob`, the sum of ln p of all tokens but the \
        first, each given those before it, and `perplexity`, null where there is no second token. What a run that ended early, \
        by Ctrl-C or an error, had scored is kept beside OUT, and the same command goes on from there.\n\n\
        With --without or --retrieval each line has `masked`, the sum with those heads looking at all that they see alike, \
        and `influence`, by how much of itself the loss grows (AttentionInfluence). `edits` are those of --edit and these.\n\n\
        Examples:\n  headwise score lines.txt --out scores.jsonl --tokens\n  \
        headwise score-data docs.jsonl --out influence.jsonl --retrieval heads.json --shard 0/4"
)]
pub struct ScoreArgs {
    /// File of texts, one a line; with the ending .jsonl a JSON object a line
    file: PathBuf,
    /// File to write; it appears only when it is complete
    #[arg(long, value_name = "OUT.jsonl")]
    out: PathBuf,
    /// The objects' field that has the text, for JSON whatever the file's ending [default: text]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Write `ids` and `logprobs` of the tokens, too: ln p of each but the first
    #[arg(long)]
    tokens: bool,
    /// Read a text longer than the model's context in pieces, each on its own
    #[arg(long)]
    cut: bool,
    /// Score each text once more without what this head looks for
    #[arg(long, value_name = "L1H2")]
    without: Vec<Address>,
    /// The same of the best heads of a file that `headwise heads retrieval --out` or Retrieval_Head wrote
    #[arg(long, value_name = "SCORES.json")]
    retrieval: Option<PathBuf>,
    /// How many of these, in percent of all heads
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, requires = "retrieval")]
    best: f64,
    /// Score every N-th text only, from the I-th on, counted from 0
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    #[command(flatten)]
    model: TaskArgs,
}

/// Which texts of a file.
#[derive(Clone, Copy, Debug)]
struct Shard {
    own: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (own, of) = text.split_once('/')?;
            Some(Self { own: own.parse().ok()?, of: of.parse().ok()? }).filter(|shard| shard.own < shard.of)
        };
        parse().ok_or_else(|| "expected I/N with I below N, such as 0/4".to_owned())
    }
}

impl ScoreArgs {
    /// The edits by which each text is scored once more, if it is.
    fn masks(&self) -> Result<Option<Edits>, Error> {
        let mut heads = self.without.clone();
        if let Some(file) = &self.retrieval {
            let refused = |found: String| Error::Argument {
                name: "best",
                found,
                expected: "more than 0, at most 100 percent".to_owned(),
            };
            if !(self.best > 0.0 && self.best <= 100.0) {
                return Err(refused(self.best.to_string()));
            }
            let ranked = plan_file(file, "scores", Retrieval::from_json)?.ranked();
            if ranked.is_empty() {
                return Err(bad(
                    &file.display().to_string(),
                    "scores",
                    "no heads",
                    "some, with their scores",
                ));
            }
            let count = (self.best / 100.0 * ranked.len() as f64).round().max(1.0) as usize;
            heads.extend(ranked.into_iter().take(count).map(|(at, _)| at));
        }
        let edits: Edits = heads.into_iter().map(|at| Edit::new(at, Change::Uniform(1.0))).collect();
        Ok(Some(edits).filter(|edits| !edits.is_empty()))
    }
}

/// Texts are scored in pieces of so many, or about so many bytes.
const CHUNK_LINES: usize = 256;
const CHUNK_BYTES: usize = 32 << 10;
/// What is scored is written at the end of a piece, and before where that is long ago.
const LONG_AGO: Duration = Duration::from_secs(10);
/// The longest line of a result that is looked at again.
const MAX_RESULT: u64 = 1 << 30;

/// A line of the result.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    tokens: usize,
    logprob: f64,
    perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masked: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    influence: Option<f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    edits: &'a [String],
    #[serde(flatten)]
    each: Option<&'a Scored>,
}

/// What a line of an earlier run has to have.
#[derive(Deserialize)]
struct Known {
    index: usize,
}

/// Texts that are scored together, the same ones in every run that was not ended among them.
struct Chunk {
    /// Their lines.
    lines: Vec<usize>,
    texts: Vec<String>,
}

pub fn run(args: &ScoreArgs, shared: &Shared) -> Result<(), Failure> {
    NewFile::check(&args.out)?;
    check_apart(&args.file, &args.out)?;
    let content = digest(&args.file)?;
    let masks = args.masks()?;
    let model = args.model.load(shared, Demo::Write)?;
    let masked = masks.as_ref().map(|masks| masked(&model, masks)).transpose()?;
    // Another task is refused before a line is read.
    headwise::block_on(model.score_ids(&[], &Score::new()))?;
    let mut work = Work {
        args,
        model: &model,
        masked: masked.as_ref(),
        edits: masked.as_ref().unwrap_or(&model).edits().iter().map(Edit::to_string).collect(),
        input: Input::open(args)?,
        out: GrowingFile::open(&args.out, &key(args, masked.as_ref().unwrap_or(&model), content))?,
        cancel: interrupt::answer(),
        done: 0,
    };
    let start = Instant::now();
    let (found, result) = match work.go_on() {
        Ok(first) => (work.done, work.rest(first, shared)),
        Err(error) => (0, Err(error)),
    };
    let Work { out, done, .. } = work;
    if let (Err(_), Some(kept), true) = (&result, out.kept_in(), done > 0) {
        remark(
            shared,
            &format!("{done} lines are kept in {}: the same command goes on there", kept.display()),
        );
    }
    result?;
    out.finish()?;
    let (lines, seconds) = (done - found, start.elapsed().as_secs_f64());
    let (speed, adapter) = (lines as f64 / seconds, model.gpu().capabilities());
    let before = if found > 0 { format!(" after {found} that were there") } else { String::new() };
    let (name, backend) = (&adapter.name, &adapter.backend);
    remark(
        shared,
        &format!("{lines} lines in {seconds:.2} s{before}, {speed:.1} lines/s; {name} ({backend})"),
    );
    Ok(())
}

/// The model without what some heads look for.
fn masked(model: &Model, masks: &Edits) -> Result<Model, Error> {
    let mut edits = model.edits().clone();
    edits.extend(masks.iter().cloned());
    model.edited(&edits)
}

/// One run over a file.
struct Work<'a> {
    args: &'a ScoreArgs,
    model: &'a Model,
    /// Without some heads.
    masked: Option<&'a Model>,
    /// All edits, in short.
    edits: Vec<String>,
    input: Input<'a>,
    out: GrowingFile,
    cancel: Cancel,
    /// Lines that are written.
    done: usize,
}

impl Work<'_> {
    /// Passes over what earlier runs have written; the first texts that are left.
    fn go_on(&mut self) -> Result<Option<Chunk>, Error> {
        let mut bytes = 0;
        let mut kept = self.out.read_back()?;
        let left = loop {
            let Some(mut chunk) = self.input.chunk()? else { break None };
            let (lines, more) = kept_lines(&mut kept, &chunk);
            (self.done, bytes) = (self.done + lines, bytes + more);
            chunk.texts.drain(..lines);
            chunk.lines.drain(..lines);
            if !chunk.texts.is_empty() {
                break Some(chunk);
            }
        };
        drop(kept);
        self.out.go_on_at(bytes)?;
        Ok(left)
    }

    /// Scores and writes the rest, from `chunk` on.
    fn rest(&mut self, mut chunk: Option<Chunk>, shared: &Shared) -> Result<(), Error> {
        let bar = progress::bar_of("scoring", shared.quiet);
        while let Some(texts) = chunk {
            self.score(&texts)?;
            bar(self.input.lines.bytes(), self.input.length);
            chunk = self.input.chunk()?;
        }
        bar(self.input.length, self.input.length);
        Ok(())
    }

    /// Scores texts and writes each that is scored, whatever ends it.
    fn score(&mut self, Chunk { lines, texts }: &Chunk) -> Result<(), Error> {
        let Self { args, model, masked, edits, input, out, cancel, done } = self;
        let file = &input.lines.file;
        let ids = |(&index, text): (&usize, &String)| match args.cut {
            true => model.tokenizer()?.encode(text),
            false => ids_of(file, index, text, model, 0),
        };
        let ids: Vec<Vec<u32>> = lines.iter().zip(texts).map(ids).collect::<Result<_, _>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let options = Score::new().cut(args.cut).cancel(cancel);
        let masked = match masked {
            Some(masked) => headwise::block_on(masked.score_ids(&ids, &options))?,
            None => Vec::new(),
        };
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (mut lines, mut taken) = (Lines::new(out, lines, &masked, edits, args.tokens), Ok(()));
        let scored = headwise::block_on(model.score_each(&ids, &options, |scored| {
            if taken.is_ok() {
                taken = lines.take(scored);
            }
        }));
        let written = taken.and_then(|()| lines.write());
        *done += lines.written;
        written?;
        scored?;
        if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Lines of the result on their way to the file.
struct Lines<'a> {
    out: &'a mut GrowingFile,
    /// Their numbers.
    numbers: &'a [usize],
    /// The same texts without some heads, where they were scored so.
    masked: &'a [Scored],
    edits: &'a [String],
    /// With what is known of each token.
    each: bool,
    /// Lines that were taken.
    taken: usize,
    waiting: Vec<u8>,
    /// Since when they may be waiting.
    since: Instant,
    /// Lines that the file has of these.
    written: usize,
}

impl<'a> Lines<'a> {
    fn new(
        out: &'a mut GrowingFile,
        numbers: &'a [usize],
        masked: &'a [Scored],
        edits: &'a [String],
        each: bool,
    ) -> Self {
        let (waiting, since) = (Vec::new(), Instant::now());
        Self { out, numbers, masked, edits, each, taken: 0, waiting, since, written: 0 }
    }

    fn take(&mut self, scored: &Scored) -> Result<(), Error> {
        let (logprob, perplexity) = (scored.sum(), scored.perplexity());
        let masked = self.masked.get(self.taken).map(Scored::sum);
        let line = Line {
            index: self.numbers.get(self.taken).copied().unwrap_or_default(),
            tokens: scored.ids.len(),
            logprob,
            perplexity,
            masked,
            // (L' − L) / L, as sums of the same tokens.
            influence: masked.filter(|_| logprob != 0.0).map(|masked| (masked - logprob) / logprob),
            edits: self.edits,
            each: self.each.then_some(scored),
        };
        serde_json::to_writer(&mut self.waiting, &line)
            .map_err(|error| Error::Io { path: "a line of JSON".to_owned(), source: error.into() })?;
        self.waiting.push(b'\n');
        self.taken += 1;
        if self.since.elapsed() < LONG_AGO { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), Error> {
        self.out.append(&self.waiting)?;
        self.waiting.clear();
        (self.written, self.since) = (self.taken, Instant::now());
        Ok(())
    }
}

/// The file of texts.
struct Input<'a> {
    lines: LineReader,
    /// Its bytes.
    length: u64,
    /// Where a line has its text, if lines are JSON.
    field: Option<&'a str>,
    shard: Shard,
    /// Lines read.
    next: usize,
}

impl<'a> Input<'a> {
    fn open(args: &'a ScoreArgs) -> Result<Self, Error> {
        let ending = args.file.extension().unwrap_or_default();
        let json = ["jsonl", "ndjson"].iter().any(|json| ending.eq_ignore_ascii_case(json));
        let field = args.field.as_deref().or(json.then_some("text"));
        let length = fs::metadata(&args.file).map_or(0, |data| data.len());
        let shard = args.shard.unwrap_or(Shard { own: 0, of: 1 });
        Ok(Self { lines: LineReader::open(&args.file)?, length, field, shard, next: 0 })
    }

    /// The next texts.
    fn chunk(&mut self) -> Result<Option<Chunk>, Error> {
        let (mut lines, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while texts.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
            let Some(line) = self.lines.line()? else { break };
            if self.next % self.shard.of == self.shard.own {
                let text = self.text(line)?;
                bytes += text.len();
                texts.push(text);
                lines.push(self.next);
            }
            self.next += 1;
        }
        Ok((!texts.is_empty()).then_some(Chunk { lines, texts }))
    }

    fn text(&self, line: String) -> Result<String, Error> {
        let Some(field) = self.field else { return Ok(line) };
        let wrong = |found: &str| {
            let expected = format!("a JSON object with a string \"{field}\"");
            bad(&self.lines.file, &numbered(self.next), found, &expected)
        };
        match serde_json::from_str(&line) {
            Ok(Value::Object(mut object)) => match object.remove(field) {
                Some(Value::String(text)) => Ok(text),
                Some(_) => Err(wrong("another kind of value there")),
                None => Err(wrong("no such field")),
            },
            Ok(_) => Err(wrong("another kind of value")),
            Err(error) => Err(wrong(&format!("no JSON ({error})"))),
        }
    }
}

/// How many of a chunk's lines an earlier run has written, and their bytes. None where it was ended while it wrote: then they are
/// scored once more, beside the same ones.
fn kept_lines(kept: &mut impl BufRead, chunk: &Chunk) -> (usize, u64) {
    let mut bytes = 0;
    for (line, &index) in chunk.lines.iter().enumerate() {
        let mut text = Vec::new();
        match kept.by_ref().take(MAX_RESULT).read_until(b'\n', &mut text) {
            Ok(0) => return (line, bytes),
            Ok(read) => bytes += read as u64,
            Err(_) => return (0, 0),
        }
        let known = text.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        if known.is_none_or(|known: Known| known.index != index) {
            return (0, 0);
        }
    }
    (chunk.texts.len(), bytes)
}

/// A hash of a file, which is read twice.
fn digest(path: &Path) -> Result<Sha256, Error> {
    let file = path.display().to_string();
    let io = |source| Error::Io { path: file.clone(), source };
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(bad(&file, "file", "what can be read once, or a folder", "a file"));
    }
    let mut hash = Sha256::new();
    let mut input = BufReader::new(File::open(path).map_err(io)?);
    loop {
        let bytes = input.fill_buf().map_err(io)?;
        if bytes.is_empty() {
            return Ok(hash);
        }
        hash.update(bytes);
        let read = bytes.len();
        input.consume(read);
    }
}

/// What tells these results from those of other files, models and options.
fn key(args: &ScoreArgs, model: &Model, content: Sha256) -> String {
    let (precision, cache) = (model.precision(), args.model.kv_cache());
    let options =
        (model.fingerprint(), precision, cache, &args.field, args.tokens, env!("CARGO_PKG_VERSION"));
    // What rounds otherwise, or reads otherwise.
    let gpu = model.gpu();
    let adapter = gpu.capabilities();
    let how = (&adapter.name, &adapter.backend, &adapter.driver, Variants::of(gpu).names(), args.cut);
    let mut hash = content.chain_update(format!("{options:?} {how:?}"));
    if let Some(shard) = args.shard {
        hash.update(format!("{shard:?}"));
    }
    if !args.without.is_empty() || args.retrieval.is_some() {
        hash.update("masked");
    }
    if !model.edits().is_empty() {
        hash.update(format!("{:?}", model.edits()));
    }
    let hash = hash.finalize();
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Says something on stderr.
fn remark(shared: &Shared, text: &str) {
    if !shared.quiet {
        // Losing a remark is no reason to fail.
        let _ = writeln!(io::stderr(), "{text}");
    }
}
