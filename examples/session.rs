//! A session of one's own: a prompt is read once, two texts are written from it side by side; then one goes back and takes the
//! likeliest way, and the other goes on in a second session from bytes.
//!
//! `cargo run --release --example session -- "The king shall"`

use std::error::Error;

use headwise::{Gpu, GpuOptions, Model, Run, Sampling, Session, SessionOptions, block_on};

/// Tokens of each text.
const TOKENS: usize = 24;

/// What was written.
pub(crate) struct Texts {
    /// Two ways to go on, drawn at random.
    pub(crate) drawn: [Vec<u32>; 2],
    /// The likeliest.
    pub(crate) likeliest: Vec<u32>,
    /// How the second of the drawn goes on, where it was written and where it was restored.
    pub(crate) kept: Vec<u32>,
    pub(crate) restored: Vec<u32>,
}

/// Lets each of `starts`, a sequence and the token that it reads next, write so many tokens.
async fn write(
    session: &mut Session,
    starts: &[(u32, u32)],
    sampling: &Sampling,
) -> headwise::Result<Vec<Vec<u32>>> {
    let runs: Vec<Run<'_>> =
        starts.iter().map(|(sequence, id)| Run::ids(*sequence, std::slice::from_ref(id))).collect();
    session.forward(&runs)?;
    let mut written = vec![Vec::new(); starts.len()];
    loop {
        // What is chosen stays on the GPU; its ids are read while the next step runs.
        session.sample(sampling)?;
        let pending = session.tokens().await?;
        let last = written[0].len() + 1 == TOKENS;
        if !last {
            let runs: Vec<Run<'_>> = starts.iter().map(|(sequence, _)| Run::sampled(*sequence)).collect();
            session.forward(&runs)?;
            session.submit(|_, _| std::ops::ControlFlow::Continue(())).await?;
        }
        written.iter_mut().zip(pending.wait().await?).for_each(|(text, id)| text.push(id));
        if last {
            return Ok(written);
        }
    }
}

/// Writes all of it behind `prompt`, which has at least two tokens.
pub(crate) async fn texts(model: &Model, prompt: &[u32]) -> headwise::Result<Texts> {
    let mut session = model.session(SessionOptions::new().sequences(2))?;
    let (start, end) = prompt.split_at(prompt.len().saturating_sub(1));
    for step in session.steps(&[Run::ids(0, start)]) {
        session.forward(&step)?;
    }
    // The second sequence has read what the first has, but for the last token, which both read now.
    let read = session.position(0)?;
    session.fork(0, 1, read)?;
    let sampling = Sampling::new().seed(7);
    let drawn = write(&mut session, &[(0, end[0]), (1, end[0])], &sampling).await?;
    let saved = session.save(1).await?;
    println!("{} bytes on the GPU, {} of them saved", session.bytes(), saved.len());

    let greedy = sampling.greedy();
    session.rewind(0, read)?;
    let likeliest = write(&mut session, &[(0, end[0])], &greedy).await?.remove(0);

    let last = drawn[1][TOKENS - 1];
    let kept = write(&mut session, &[(1, last)], &greedy).await?.remove(0);
    let mut second = model.session(SessionOptions::new())?;
    second.restore(0, &saved)?;
    let restored = write(&mut second, &[(0, last)], &greedy).await?.remove(0);
    Ok(Texts { drawn: [drawn[0].clone(), drawn[1].clone()], likeliest, kept, restored })
}

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "She had never".to_owned());
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let model = block_on(Model::demo(&gpu))?;
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(&prompt)?;
    if ids.len() < 2 {
        return Err("a prompt of two tokens or more is needed".into());
    }
    let texts = block_on(texts(&model, &ids))?;
    let whole = |ends: &[&[u32]]| tokenizer.decode(&[&[&ids[..]], ends].concat().concat());
    println!("drawn     {}", whole(&[&texts.drawn[0]])?);
    println!("drawn     {}", whole(&[&texts.drawn[1]])?);
    println!("… kept    {}", whole(&[&texts.drawn[1], &texts.kept])?);
    println!("… saved   {}", whole(&[&texts.drawn[1], &texts.restored])?);
    println!("likeliest {}", whole(&[&texts.likeliest])?);
    Ok(())
}
