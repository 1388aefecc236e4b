//! A batch job: what goes on behind each line of a file, many at a time, as JSON Lines. A job that was ended goes on where it was.
//!
//! `cargo run --release --example batch -- prompts.txt out.jsonl`

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, Write},
    ops::ControlFlow,
    path::Path,
};

use headwise::{Generate, Gpu, GpuOptions, Model, block_on};
use serde_json::json;

/// Texts side by side: they share each step, and a step costs little more for many than for one.
const SIDE_BY_SIDE: usize = 32;

/// Writes one line for each of `prompts` into `out`, but for those that it has already; how many were written now.
pub(crate) fn job(
    model: &Model,
    prompts: &[&str],
    options: &Generate,
    out: &Path,
) -> Result<usize, Box<dyn Error>> {
    let done = whole_lines(out)?;
    let mut file = BufWriter::new(OpenOptions::new().create(true).append(true).open(out)?);
    let tokenizer = model.tokenizer()?;
    for some in prompts[done.min(prompts.len())..].chunks(SIDE_BY_SIDE) {
        let ids: Vec<Vec<u32>> =
            some.iter().map(|prompt| tokenizer.encode(prompt)).collect::<Result<_, _>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let written = block_on(model.generate_ids(&ids, options, |_| ControlFlow::Continue(())))?;
        for (index, prompt) in some.iter().enumerate() {
            let (text, tokens) = (&written.text[index], written.ids[index].len());
            writeln!(file, "{}", json!({ "prompt": prompt, "text": text, "tokens": tokens }))?;
        }
        file.flush()?;
    }
    Ok(prompts.len().saturating_sub(done))
}

/// The lines of a file that was being written: one that was cut is taken away.
fn whole_lines(out: &Path) -> Result<usize, Box<dyn Error>> {
    let Ok(bytes) = fs::read(out) else { return Ok(0) };
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    OpenOptions::new().write(true).open(out)?.set_len(end as u64)?;
    Ok(bytes[..end].iter().filter(|&&byte| byte == b'\n').count())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(prompts), Some(out)) = (args.next(), args.next()) else {
        return Err("batch: a file with a prompt on each line, and a file to write".into());
    };
    let prompts: Vec<String> = BufReader::new(File::open(prompts)?).lines().collect::<Result<_, _>>()?;
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let model = block_on(Model::demo(&gpu))?;
    let written = job(&model, &prompts, &Generate::new().greedy().max_new(32), Path::new(&out))?;
    println!("{written} of {} lines", prompts.len());
    Ok(())
}
