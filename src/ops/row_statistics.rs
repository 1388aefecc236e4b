//! What rows of attention weights come to, and how much of them falls on keys that someone named.

use super::{Asked, Kernel, attention_rows::lanes, shaders};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ROW_STATISTICS, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        asked_heads: u32,
        first: u32,
        row: u32,
        columns: u32,
    }
}

/// Keys whose weights are summed up.
#[derive(Clone, Debug)]
pub enum MassOf<'a> {
    /// The key so many slots before the row's own.
    Behind(u32),
    /// These slots.
    Listed(&'a [u32]),
    /// For each asked token these slots.
    OfToken(Vec<&'a [u32]>),
}

/// The masses of a step on the GPU.
pub struct Masses {
    words: Buffer,
    count: u32,
}

impl Masses {
    /// In the order of their columns. A slot that is listed twice counts twice.
    pub fn new(gpu: &Gpu, masses: &[MassOf<'_>]) -> Self {
        let words = mass_words(masses);
        Self { words: Buffer::with_data(gpu, "masses", &words), count: masses.len() as u32 }
    }

    /// Bytes of GPU memory that they hold.
    pub fn held(&self) -> u64 {
        self.words.bytes()
    }
}

/// The layout that `shaders/row_statistics.wgsl` describes.
fn mass_words(masses: &[MassOf<'_>]) -> Vec<u32> {
    let mut words = vec![0; 3 * masses.len()];
    for (mass, at) in masses.iter().zip((0..).step_by(3)) {
        let first = words.len() as u32;
        let record = match mass {
            MassOf::Behind(slots) => [0, *slots, 0],
            MassOf::Listed(slots) => {
                words.extend(*slots);
                [1, first, first + slots.len() as u32]
            }
            MassOf::OfToken(lists) => {
                let mut at = first + 2 * lists.len() as u32;
                for slots in lists {
                    words.extend([at, at + slots.len() as u32]);
                    at += slots.len() as u32;
                }
                lists.iter().for_each(|slots| words.extend(*slots));
                [2, first, 0]
            }
        };
        words[at..at + 3].copy_from_slice(&record);
    }
    words
}

/// Entropy, Σ w², the slot of the largest weight, that weight, and masses, of rows that [`AttentionRows`](super::AttentionRows) wrote.
pub struct RowStatistics<'a> {
    /// `[range, asked heads, row]`
    pub rows: &'a Buffer,
    pub row: u32,
    pub asked: &'a Asked,
    /// Which of the asked tokens.
    pub range: std::ops::Range<u32>,
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// Tokens of the step.
    pub tokens: u32,
    pub masses: &'a Masses,
    /// `[asked tokens, asked heads, columns]`: all columns but the first two are written.
    pub statistics: &'a Buffer,
}

impl RowStatistics<'_> {
    /// Columns of a row that have names of their own: the highest score, the logarithm of the sum, entropy, Σ w², the slot of the
    /// largest weight, that weight. Masses follow.
    pub const COLUMNS: u32 = 6;

    pub fn record(&self, recorder: &mut Recorder) {
        let Self { rows, row, asked, spans, tokens, masses, statistics, .. } = *self;
        let params = Params {
            tokens,
            asked_heads: asked.heads(),
            first: self.range.start,
            row,
            columns: Self::COLUMNS + masses.count,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[lanes(recorder)],
                ..Dispatch::new(
                    &KERNEL,
                    &[rows, &asked.words, spans, &masses.words, statistics],
                    [asked.heads(), self.range.len() as u32, 1],
                )
            },
        );
    }
}
