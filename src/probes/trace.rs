//! What was recorded of a run.

use super::{Address, Change, Edit, Edits, Observe, Positions, Vectors, What};

/// What was recorded of a run, one [`Recorded`] for each layer and capture, in the order in which they were asked for, routers at
/// the end.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Trace {
    /// What was asked for.
    pub observe: Observe,
    /// What was changed in the run.
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    pub edits: Edits,
    /// What there is.
    pub recorded: Vec<Recorded>,
}

/// One capture of one layer: `values` `[rows, heads, width]`, a row for each token.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Recorded {
    /// As TransformerLens calls it: `blocks.1.attn.hook_z`.
    pub name: String,
    /// From 0.
    pub layer: u32,
    /// What it is.
    pub what: What,
    /// The tokens of its rows: sequence, position.
    pub rows: Vec<[u32; 2]>,
    /// The numbers of its heads; none where a layer has it once, which counts as one.
    pub heads: Vec<u32>,
    /// Values of a head of a row.
    pub width: usize,
    /// All of them, row by row. Of a head that a token did not choose they are 0.
    pub values: Vec<f32>,
}

impl Trace {
    /// What was recorded under a name, the first of it.
    pub fn get(&self, name: &str) -> Option<&Recorded> {
        self.recorded.iter().find(|recorded| recorded.name == name)
    }

    /// What was recorded of a kind, layer by layer.
    pub fn of(&self, what: What) -> impl Iterator<Item = &Recorded> {
        self.recorded.iter().filter(move |recorded| recorded.what == what)
    }

    /// The column of [`What::Rows`] of this name: one of [`STATISTICS`](super::STATISTICS), or of a mass.
    pub fn column(&self, name: &str) -> Option<usize> {
        let masses = self.observe.masses().iter().map(|mass| mass.name.as_str());
        super::STATISTICS.into_iter().chain(masses).position(|column| column == name)
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.recorded.iter().map(|recorded| 4 * recorded.values.len() as u64).sum()
    }
}

impl Recorded {
    /// Heads of a row, one where a layer has it once.
    fn count(&self) -> usize {
        self.heads.len().max(1)
    }

    /// The values of the `head`-th head, by its place in [`heads`](Self::heads), in the `row`-th row; none where there is no such.
    pub fn at(&self, row: usize, head: usize) -> &[f32] {
        let from = (row * self.count() + head) * self.width;
        match head < self.count() {
            true => self.values.get(from..from + self.width).unwrap_or_default(),
            false => &[],
        }
    }

    /// Edits that put a sequence's recorded values into another run, at the same positions (`z ← (1 − part) · z + part · recorded`):
    /// those of its own change no bit. Nothing of what is no place to edit: patterns, rows, routers, what comes before a layer.
    pub fn edits(&self, sequence: u32, part: f32) -> Vec<Edit> {
        let of_layer = matches!(self.what, What::ResidMid | What::ResidPost);
        if !of_layer && !matches!(self.what, What::Q | What::K | What::V | What::Z) {
            return Vec::new();
        }
        let rows: Vec<(usize, u32)> = (0..)
            .zip(&self.rows)
            .filter(|(_, row)| row[0] == sequence)
            .map(|(index, row)| (index, row[1]))
            .collect();
        let mut edits = Vec::new();
        for head in 0..self.count() {
            let at = match of_layer {
                true => Address::layer(self.layer),
                false => Address::head(self.layer, self.heads[head]),
            };
            // Positions that follow each other have one edit.
            for run in rows.chunk_by(|a, b| a.1 + 1 == b.1) {
                let with = run.iter().map(|(row, _)| self.at(*row, head).to_vec()).collect();
                let (first, end) = (run[0].1, run[run.len() - 1].1 + 1);
                let change = Change::Mix { part, with: Vectors::Each(with) };
                edits.push(Edit::new(at, change).of(self.what).positions(Positions::Range(first, end)));
            }
        }
        edits
    }

    /// The row of a token; none where it was not recorded.
    pub fn row_of(&self, sequence: u32, position: u32) -> Option<usize> {
        self.rows.iter().position(|&row| row == [sequence, position])
    }
}
