//! The edits of one sublayer as the kernels read them, the twin of `shaders/shared/edits.wgsl`.

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
}

/// The edits of a sublayer's heads, or of its experts, on the GPU.
pub struct EditPlan {
    pub(super) words: Buffer,
}

impl EditPlan {
    /// Edits of one unit are made in the order in which they come here.
    pub fn new(gpu: &Gpu, units: u32, edits: &[PlannedEdit]) -> Self {
        Self { words: Buffer::with_data(gpu, "edits", &words(units, edits)) }
    }

    /// Bytes it takes.
    pub fn bytes(units: u32, edits: &[PlannedEdit]) -> u64 {
        let lists = edits.iter().map(|edit| match &edit.positions {
            EditPositions::List(list) => list.len(),
            EditPositions::All | EditPositions::Range(..) => 0,
        });
        4 * (u64::from(units) + 2 + (RECORD * edits.len() + lists.sum::<usize>()) as u64)
    }
}

/// Words of a record.
const RECORD: usize = 5;

fn words(units: u32, edits: &[PlannedEdit]) -> Vec<u32> {
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
        records.extend([edit.kind as u32 | place << 8, first, end, edit.value.to_bits(), edit.number]);
    }
    [starts, records, lists].concat()
}
