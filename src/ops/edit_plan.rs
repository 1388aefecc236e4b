//! The edits of one sublayer as the kernels read them, the twin of `shaders/shared/edits.wgsl`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::head_stride;
use crate::gpu::{Buffer, Gpu};

/// What happens to a head or an expert; what the numbers mean stands in the shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditKind {
    Scale,
    Off,
    Masked,
    Forced,
    Bias,
    Identity,
    Uniform,
    Mix,
    Add,
    Row,
}

/// At which positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditPositions {
    All,
    Range(u32, u32),
    List(Vec<u32>),
}

/// One edit of one head or expert.
#[derive(Clone, Debug)]
pub struct PlannedEdit {
    /// The head or expert.
    pub unit: u32,
    pub kind: EditKind,
    pub value: f32,
    pub positions: EditPositions,
    /// Where it is counted, among all edits of a session.
    pub number: u32,
    /// What is mixed in or added: one vector, or one for each position of a range; the same for all units of an edit. None where
    /// nothing is.
    pub vectors: Arc<[Vec<f32>]>,
    /// Of a row that is given: positions and their weights.
    pub row: Arc<[(u32, f32)]>,
}

impl PlannedEdit {
    /// Words of its row.
    fn row_words(&self) -> usize {
        if self.row.is_empty() { 0 } else { 1 + 2 * self.row.len() }
    }
}

/// The edits of a sublayer's heads, or of its experts, on the GPU.
pub struct EditPlan {
    pub(super) words: Buffer,
    pub(super) vectors: Buffer,
}

impl EditPlan {
    /// Edits of one unit are made in the order in which they come here.
    pub fn new(gpu: &Gpu, units: u32, edits: &[PlannedEdit]) -> Self {
        let vectors = vectors(edits);
        let words = words(units, edits, &vectors.starts);
        let [words, vectors] =
            [bytemuck::cast_slice(&words), bytemuck::cast_slice::<f32, u8>(&vectors.floats)]
                .map(|bytes: &[u8]| Buffer::with_data(gpu, "edits", bytes));
        Self { words, vectors }
    }

    /// Bytes of its largest buffer, and of all.
    pub fn bytes(units: u32, edits: &[PlannedEdit]) -> [u64; 2] {
        let lists = edits.iter().map(|edit| match &edit.positions {
            EditPositions::List(list) => list.len(),
            EditPositions::All | EditPositions::Range(..) => 0,
        });
        let rows = edits.iter().map(PlannedEdit::row_words);
        let behind = RECORD * edits.len() + lists.chain(rows).sum::<usize>();
        let words = 4 * (u64::from(units) + 2 + behind as u64);
        let mut known = HashSet::new();
        let own = edits.iter().filter(|edit| known.insert(edit.number)).flat_map(|edit| edit.vectors.iter());
        let vectors = own.map(|vector| 4 * u64::from(head_stride(vector.len() as u32))).sum::<u64>();
        [words.max(vectors), words + vectors]
    }
}

/// The vectors of a plan, each padded as heads are, and the quad where those of an edit start, by its number.
struct PackedVectors {
    floats: Vec<f32>,
    starts: HashMap<u32, u32>,
}

fn vectors(edits: &[PlannedEdit]) -> PackedVectors {
    let (mut floats, mut starts) = (Vec::new(), HashMap::new());
    for edit in edits.iter().filter(|edit| !edit.vectors.is_empty()) {
        starts.entry(edit.number).or_insert_with(|| {
            let start = floats.len() as u32 / 4;
            for vector in edit.vectors.iter() {
                floats.extend_from_slice(vector);
                floats.resize(floats.len().next_multiple_of(4), 0.0);
            }
            start
        });
    }
    PackedVectors { floats, starts }
}

/// Words of a record.
const RECORD: usize = 6;

/// Marks a vector for each position.
const EACH: u32 = 1 << 16;

fn words(units: u32, edits: &[PlannedEdit], vectors: &HashMap<u32, u32>) -> Vec<u32> {
    let mut edits: Vec<&PlannedEdit> = edits.iter().collect();
    // Stable: in their order within a unit.
    edits.sort_by_key(|edit| edit.unit);
    let records_at = units as usize + 2;
    let mut starts = vec![units; records_at];
    for (unit, start) in (0..).zip(&mut starts[1..]) {
        *start = (records_at + RECORD * edits.partition_point(|edit| edit.unit < unit)) as u32;
    }
    let lists_at = records_at + RECORD * edits.len();
    let (mut records, mut lists) = (Vec::new(), Vec::new());
    for edit in edits {
        let (place, first, end) = match &edit.positions {
            EditPositions::All => (0, 0, 0),
            EditPositions::Range(first, end) => (1, *first, *end),
            EditPositions::List(list) => {
                let first = (lists_at + lists.len()) as u32;
                let mut list = list.clone();
                list.sort_unstable();
                lists.extend(&list);
                (2, first, first + list.len() as u32)
            }
        };
        let each = if edit.vectors.len() > 1 { EACH } else { 0 };
        let brought = if edit.row.is_empty() {
            vectors.get(&edit.number).copied().unwrap_or(0)
        } else {
            let start = (lists_at + lists.len()) as u32;
            lists.push(edit.row.len() as u32);
            lists.extend(edit.row.iter().flat_map(|(position, weight)| [*position, weight.to_bits()]));
            start
        };
        let what = edit.kind as u32 | place << 8 | each;
        records.extend([what, first, end, edit.value.to_bits(), edit.number, brought]);
    }
    [starts, records, lists].concat()
}
