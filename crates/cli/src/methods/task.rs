//! `headwise task …`: tasks as what heads put out (SITE).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use headwise::{
    Error, Model, block_on,
    internal::NewFile,
    methods::{Question, TaskVector},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{
    args::Shared,
    demo::Demo,
    edited::{TaskArgs, plan_file},
    failure::Failure,
    output,
};

/// Learn a task from examples, and do it without any
#[derive(Args)]
pub struct TaskCommand {
    #[command(subcommand)]
    what: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Learn a task: what heads put out behind prompts with examples
    Learn(LearnArgs),
    /// Do a task that was learnt
    Run(RunArgs),
}

#[derive(Args)]
#[command(
    after_help = "PAIRS is a list of {\"input\": …, \"output\": …}, or an object with lists \"train\" and \"test\", of which the \
        first is learnt from and the other tried.\n\n\
        Example:\n  headwise task learn capitals.json --out capitals.task --template \"{input} > {output} ; \""
)]
struct LearnArgs {
    /// File of pairs
    pairs: PathBuf,
    /// File to write
    #[arg(long, value_name = "OUT.task")]
    out: PathBuf,
    /// An example; a question is what comes before {output}
    #[arg(long, value_name = "TEXT", default_value = "{input} -> {output}\n")]
    template: String,
    /// Prompts to learn from
    #[arg(long, value_name = "N", default_value_t = 50)]
    prompts: usize,
    /// Examples of a prompt
    #[arg(long, value_name = "N", default_value_t = 10)]
    shots: usize,
    /// How much is mixed in, from 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.5)]
    part: f32,
    /// Search each head's part over 0, 1/2 and 1, so many times over all heads
    #[arg(long, value_name = "ROUNDS", default_value_t = 0)]
    search: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

#[derive(Args)]
#[command(after_help = "Example:\n  headwise task run capitals.task France")]
struct RunArgs {
    /// File that `task learn` wrote
    task: PathBuf,
    /// The input
    input: String,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_new: usize,
    #[command(flatten)]
    model: TaskArgs,
}

/// What is kept of a task.
#[derive(Serialize, Deserialize)]
struct TaskFile {
    template: String,
    #[serde(flatten)]
    vector: TaskVector,
}

#[derive(Clone, Debug, Deserialize)]
struct Pair {
    input: String,
    output: String,
}

/// What came of learning.
#[derive(Serialize)]
struct Report {
    questions: usize,
    right_without: f64,
    right: f64,
    loss_without: f64,
    loss: f64,
}

/// The pairs to learn from, and those to try.
fn read_pairs(text: &str) -> Result<[Vec<Pair>; 2], Error> {
    let wrong = |found: String| Error::Argument {
        name: "pairs",
        found,
        expected: r#"[{"input": "France", "output": "Paris"}, …], or {"train": […], "test": […]}"#.to_owned(),
    };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let list = |value: &Value| -> Result<Vec<Pair>, Error> {
        serde_json::from_value(value.clone()).map_err(|error| wrong(error.to_string()))
    };
    let (train, test) = match &value {
        Value::Object(parts) => {
            let part = |name: &str| parts.get(name).map(list).transpose();
            let train = part("train")?.ok_or_else(|| wrong("no \"train\"".to_owned()))?;
            (train.clone(), part("test")?.or(part("valid")?).unwrap_or(train))
        }
        whole => (list(whole)?, list(whole)?),
    };
    match train.len() {
        0 | 1 => Err(wrong(format!("{} pairs", train.len()))),
        _ => Ok([train, test]),
    }
}

/// What comes before the output in a template.
fn question(template: &str) -> Result<&str, Error> {
    match template.split_once("{output}") {
        Some((question, _)) if question.contains("{input}") => Ok(question),
        _ => Err(Error::Argument {
            name: "template",
            found: format!("{template:?}"),
            expected: "{input}, and {output} behind it".to_owned(),
        }),
    }
}

fn filled(template: &str, pair: &Pair) -> String {
    template.replace("{input}", &pair.input).replace("{output}", &pair.output)
}

pub fn run(args: &TaskCommand, shared: &Shared) -> Result<(), Failure> {
    match &args.what {
        Task::Learn(args) => learn(args, shared),
        Task::Run(args) => answer(args, shared),
    }
}

fn learn(args: &LearnArgs, shared: &Shared) -> Result<(), Failure> {
    let question = question(&args.template)?;
    let [train, test] = plan_file(&args.pairs, "pairs", read_pairs)?;
    NewFile::check(&args.out)?;
    let model = args.model.load(shared, Demo::Write)?;
    // Each prompt begins one pair further, and steps over some, so that neighbours differ.
    let shots = args.shots.min(train.len() - 1);
    let prompt = |from: usize| {
        let step = 1 + from / train.len() % (train.len() - 1);
        let pair = |i: usize| &train[(from + i * step) % train.len()];
        let examples: String = (0..shots).map(|i| filled(&args.template, pair(i))).collect();
        examples + &filled(question, pair(shots))
    };
    let ids = |text: &str| model.encode(text.trim_end());
    let prompts = (0..args.prompts).map(|from| ids(&prompt(from))).collect::<Result<Vec<_>, _>>()?;
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut vector = block_on(TaskVector::learn(&model, &prompts, args.part))?;
    let [of_train, of_test] = [asked(&model, question, &train)?, asked(&model, question, &test)?];
    let questions = |asked: &[(Vec<u32>, u32)]| -> f64 { asked.len() as f64 };
    if args.search > 0 {
        let all: Vec<Question<'_>> =
            of_train.iter().map(|(prompt, answer)| Question { prompt, answer: *answer }).collect();
        block_on(vector.search(&model, &all, args.search))?;
    }
    let all: Vec<Question<'_>> =
        of_test.iter().map(|(prompt, answer)| Question { prompt, answer: *answer }).collect();
    let (loss, right) = block_on(vector.score(&model, &all))?;
    let mut none = vector.clone();
    none.heads.iter_mut().for_each(|head| head.part = 0.0);
    let (loss_without, right_without) = block_on(none.score(&model, &all))?;
    let report = Report { questions: questions(&of_test) as usize, right_without, right, loss_without, loss };
    let file = TaskFile { template: args.template.clone(), vector };
    let text = serde_json::to_string(&file).map_err(std::io::Error::from)?;
    NewFile::write(&args.out, text.as_bytes())?;
    if args.json {
        return output::json(&report);
    }
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    output::line(&format!(
        "{} questions without examples: {} right, {} with the task (loss {loss_without:.3}, {loss:.3})",
        report.questions,
        percent(right_without),
        percent(right)
    ))
}

/// Questions without examples, and the first tokens of their answers.
fn asked(model: &Model, question: &str, pairs: &[Pair]) -> Result<Vec<(Vec<u32>, u32)>, Error> {
    let one = |pair: &Pair| {
        let asked = filled(question, pair);
        let prompt = model.encode(asked.trim_end())?;
        let whole = model.encode(&format!("{asked}{}", pair.output))?;
        let answer = whole.get(prompt.len()).copied().ok_or_else(|| Error::Argument {
            name: "output",
            found: format!("{:?}", pair.output),
            expected: "a text with a token of its own behind the question".to_owned(),
        })?;
        Ok((prompt, answer))
    };
    pairs.iter().map(one).collect()
}

fn answer(args: &RunArgs, shared: &Shared) -> Result<(), Failure> {
    let parse = |text: &str| {
        serde_json::from_str::<TaskFile>(text).map_err(|error| Error::Argument {
            name: "task",
            found: error.to_string(),
            expected: "what headwise task learn writes".to_owned(),
        })
    };
    let TaskFile { template, vector } = plan_file(&args.task, "task", parse)?;
    let model = args.model.load(shared, Demo::Write)?;
    let asked = question(&template)?.replace("{input}", &args.input);
    let ids = model.encode(asked.trim_end())?;
    let model = vector.applied(&model, ids.len())?;
    let greedy = headwise::Generate::new().greedy().max_new(args.max_new);
    let generated = block_on(model.generate_ids(&[&ids], &greedy, |_| std::ops::ControlFlow::Continue(())))?;
    let text = model.tokenizer()?.decode(&generated.ids[0])?;
    output::line(output::fit_to_print(text.trim(), false).as_str())
}
