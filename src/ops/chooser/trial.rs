//! The work that candidates do against the clock: like a decoded token's, and like a prompt's.

use super::{Candidate, Family};
use crate::{
    Result,
    gpu::{Buffer, Clock, Gpu, Recorder},
    ops::{
        Activation, Bias, GroupBuffers, Matrix, MatrixShape, Precision, RoutedMatmul, RoutedMatvec, Routes,
    },
};

const EXPERTS: u32 = 4;
/// Experts of each token.
const ACTIVE: u32 = 2;
/// Inputs and outputs of the decoded token's matrices: 2 MiB each, more than a first cache holds.
const DECODE_WIDTH: u32 = 1024;
/// Inputs and outputs of the prompt's.
const PROMPT_WIDTH: u32 = 512;
/// 64 rows for each expert.
const PROMPT_TOKENS: u32 = 128;

/// Rounds in which a family's first candidate and another take turns; the other's worst round counts, so that a program
/// that disturbs the first one's run does not decide for good.
const ROUNDS: usize = 4;
/// A run repeats the work until the family's first candidate takes this long, so that the way to the GPU and back, and
/// clocks of browsers, which tick in tenths of milliseconds, weigh little.
const SECONDS: f64 = 0.004;
/// Repetitions at the most.
const MOST_TURNS: f64 = 32.0;
/// A candidate that needs so many times the first one's time in a round has lost.
const HOPELESS: f64 = 1.0;

/// The work of each family, made when it is measured first.
pub(super) struct Trials {
    /// Apart: what a driver refuses here says nothing of the work to come.
    gpu: Gpu,
    works: Vec<Work>,
}

impl Trials {
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.apart(), works: Vec::new() }
    }

    /// The time that a candidate takes for its family's work, in times of the first candidate's; none where the device
    /// refuses it.
    pub async fn ratio(&mut self, family: Family, first: Candidate, candidate: Candidate) -> Option<f64> {
        let gpu = &self.gpu;
        let trial = async {
            match self.works.iter_mut().find(|work| work.family == family) {
                Some(work) => work.ratio(first, candidate).await,
                None => {
                    let mut work = Work::new(gpu, family)?;
                    work.measure_turns(first).await?;
                    self.works.push(work);
                    Ok(1.0)
                }
            }
        };
        gpu.attempt("measuring the kernels", trial).await.ok()
    }
}

/// A routed product with all that it reads and writes.
struct Work {
    family: Family,
    recorder: Recorder,
    matrix: Matrix,
    tokens: u32,
    src: Buffer,
    dst: Buffer,
    chosen: Buffer,
    gates: Buffer,
    groups: GroupBuffers,
    turns: u32,
}

impl Work {
    fn new(gpu: &Gpu, family: Family) -> Result<Self> {
        let (width, tokens, precision) = match family {
            Family::Matvec => (DECODE_WIDTH, 1, Precision::F16),
            Family::Matmul => (PROMPT_WIDTH, PROMPT_TOKENS, Precision::F16),
            Family::QuantizedMatvec => (DECODE_WIDTH, 1, Precision::Q4),
            Family::QuantizedMatmul => (PROMPT_WIDTH, PROMPT_TOKENS, Precision::Q4),
        };
        let shape = MatrixShape { experts: EXPERTS, halves: 1, outputs: width, inputs: width };
        let assignments = tokens * ACTIVE;
        let rows = |rows: u32| 4 * u64::from(rows) * u64::from(width);
        let words: Vec<u32> = (0..assignments).map(|assignment| assignment % EXPERTS).collect();
        let groups = GroupBuffers::new(gpu, assignments, EXPERTS, LEAST_TILE_ROWS);
        Ok(Self {
            family,
            recorder: Recorder::new(gpu),
            matrix: Matrix::new(gpu, "chooser.weights", shape, precision)?,
            tokens,
            src: Buffer::new(gpu, "chooser.src", rows(tokens)),
            dst: Buffer::new(gpu, "chooser.dst", rows(assignments)),
            chosen: Buffer::with_data(gpu, "chooser.chosen", &words),
            gates: Buffer::new(gpu, "chooser.gates", 4 * u64::from(assignments)),
            groups,
            turns: 1,
        })
    }

    /// Finds out how often to repeat the work.
    async fn measure_turns(&mut self, first: Candidate) -> Result<()> {
        // Compiles, and commits memory.
        self.run(first, 1).await?;
        let once = self.run(first, 1).await?;
        self.turns = (SECONDS / once).ceil().clamp(1.0, MOST_TURNS) as u32;
        Ok(())
    }

    async fn ratio(&mut self, first: Candidate, candidate: Candidate) -> Result<f64> {
        // Compiles.
        self.run(candidate, 1).await?;
        let mut worst: f64 = 0.0;
        for _ in 0..ROUNDS {
            let own = self.run(first, self.turns).await?;
            worst = worst.max(self.run(candidate, self.turns).await? / own);
            if worst > HOPELESS {
                break;
            }
        }
        Ok(worst)
    }

    /// Writes what grouping would: each expert's rows, one after the other, in full tiles.
    fn group(&self, tile_rows: u32) {
        let each = self.tokens * ACTIVE / EXPERTS;
        let order: Vec<u32> =
            (0..EXPERTS).flat_map(|expert| (0..each).map(move |row| row * EXPERTS + expert)).collect();
        let firsts = (0..each * EXPERTS).step_by(tile_rows as usize);
        let mut tiles: Vec<[u32; 3]> = firsts.map(|first| [first / each, first, tile_rows]).collect();
        // Tiles without rows, as many as a matmul is dispatched for at the most.
        tiles.resize(tiles.len() + EXPERTS as usize, [0; 3]);
        self.groups.order.write(0, &order);
        self.groups.tiles.write(0, &tiles);
    }

    async fn run(&mut self, candidate: Candidate, turns: u32) -> Result<f64> {
        if matches!(self.family, Family::Matmul | Family::QuantizedMatmul) {
            self.group(candidate.tile_rows);
        }
        let clock = Clock::start();
        for _ in 0..turns {
            self.record(candidate);
        }
        // Reading a word back is how to wait in a browser.
        self.recorder.submit_and_read(&[(&self.dst, 0, 4)]).wait("measuring the kernels").await?;
        Ok(clock.seconds())
    }

    fn record(&mut self, candidate: Candidate) {
        let Self { recorder, matrix, src, dst, chosen, gates, groups, tokens, .. } = self;
        let (rows, bias, activation) = (*tokens * ACTIVE, Bias::None, Activation::None);
        match self.family {
            Family::Matvec | Family::QuantizedMatvec => RoutedMatvec {
                src,
                matrix,
                routes: Some(Routes { chosen, gates, first: 0, scores: gates, first_score: 0 }),
                gated: false,
                bias,
                activation,
                dst,
                residual: false,
                rows,
                slots: 1,
                src_div: ACTIVE,
                beside: None,
            }
            .record_as(recorder, candidate.variant),
            Family::Matmul | Family::QuantizedMatmul => RoutedMatmul {
                src,
                matrix,
                groups: Some(groups),
                bias,
                activation,
                dst,
                rows,
                src_div: ACTIVE,
                bounded: true,
            }
            .record_as(recorder, candidate.variant, candidate.tile_rows),
        }
    }
}

/// The lowest tiles of any candidate, which need the largest table.
const LEAST_TILE_ROWS: u32 = 8;
