//! The measured choice of shapes: each candidate does a little typical work once on an adapter, and the answer is kept.

mod notes;
mod trial;

use serde::Serialize;

use super::{Shape, Shapes};
use crate::gpu::{Capabilities, Clock, Gpu, KernelChoice, KernelMemory};

use notes::Note;
pub use notes::Notes;
use trial::Trials;

/// Seconds that a whole choice may take, compiling included.
const BUDGET: f64 = 0.3;

/// A candidate replaces the shape by capability if it takes this share less time in every round, so that noise decides
/// nothing: the choice is kept.
pub const MARGIN: f64 = 0.15;

/// Times the slowest matvec that the first matmul is expected to take: what compiling it takes on Mesa's software driver
/// (0.27 s against 0.09).
const MATMUL_COST: f64 = 3.0;

/// What a device runs, and whether that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub shapes: Shapes,
    measured: bool,
}

impl Chosen {
    pub fn of(gpu: &Gpu) -> Self {
        // Another type is never kept, so there is always an answer.
        gpu.keep(|| Self::by_capability(gpu)).unwrap_or_else(|| Self::by_capability(gpu))
    }

    fn by_capability(gpu: &Gpu) -> Self {
        let shapes = Shapes::by_capability(gpu.kernel_choice(), gpu.capabilities());
        Self { shapes, measured: false }
    }
}

/// Kernels among whose shapes one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Routed linear for few rows.
    Matvec,
    /// Routed linear for many.
    Matmul,
}

/// A shape that may be the fastest of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub shape: Shape,
    /// Rows of a tile; 1 in a matvec.
    pub tile_rows: u32,
}

/// The shape by capability, then the others that this device can run and that can win.
///
/// Workgroup memory cannot win on software adapters, which run a barrier as a loop over all lanes.
pub fn candidates(family: Family, capabilities: &Capabilities) -> Vec<Candidate> {
    let by_capability = Shapes::by_capability(KernelChoice::Tuned, capabilities);
    let broadcast = Shape::broadcast(capabilities);
    let (first, tiles): (Shape, fn(Shape) -> &'static [u32]) = match family {
        Family::Matvec => (by_capability.matvec, |_| &[1]),
        Family::Matmul => (by_capability.matmul, |shape| match shape {
            Shape::Plain => &[8],
            Shape::Broadcast { .. } => &[16, 8],
            Shape::Workgroup | Shape::Subgroup => &[32],
        }),
    };
    let mut shapes = vec![first];
    let others: &[Shape] = if capabilities.software {
        &[broadcast, Shape::Plain]
    } else {
        &[Shape::Workgroup, broadcast, Shape::Plain]
    };
    for &other in others {
        if !shapes.contains(&other) {
            shapes.push(other);
        }
    }
    let with_tiles = |shape| tiles(shape).iter().map(move |&tile_rows| Candidate { shape, tile_rows });
    shapes.into_iter().flat_map(with_tiles).collect()
}

/// The index of the fastest candidate, by time: the first, unless another needs [`MARGIN`] less. Candidates without a time
/// lose; without a time of the first there is nothing to compare with.
pub fn pick(times: &[Option<f64>]) -> usize {
    let Some(&Some(first)) = times.first() else { return 0 };
    let mut best = (0, first * (1.0 - MARGIN));
    for (index, &time) in times.iter().enumerate().skip(1) {
        if let Some(time) = time.filter(|&time| time < best.1) {
            best = (index, time);
        }
    }
    best.0
}

/// Measures the candidates of each family, first the shape by capability, and picks. `measure` gets a family, its first
/// candidate and one of its candidates, and returns a time in times of the first one's.
///
/// Before each candidate the clock is asked: where what is left of `budget` seconds is less than the slowest candidate so
/// of its family took, the rest go without a time. The matvec comes first, whose kernels compile sooner; where they did so
/// slowly that the matmul's would not fit, these are left alone. A family without alternatives is not measured.
pub async fn choose(
    capabilities: &Capabilities,
    budget: f64,
    clock: impl Fn() -> f64,
    mut measure: impl AsyncFnMut(Family, Candidate, Candidate) -> Option<f64>,
) -> Shapes {
    let mut expected = 0.0;
    let mut picked = Vec::new();
    for family in [Family::Matvec, Family::Matmul] {
        let list = candidates(family, capabilities);
        let (mut times, mut slowest) = (Vec::new(), 0.0_f64);
        for &candidate in list.iter().filter(|_| list.len() > 1) {
            let before = clock();
            if before + if times.is_empty() { expected } else { slowest } >= budget {
                break;
            }
            let time = measure(family, list[0], candidate).await;
            let took = clock() - before;
            tracing::debug!(?family, ?candidate, ?time, took, "measured");
            times.push(time);
            slowest = slowest.max(took);
        }
        expected = MATMUL_COST * slowest;
        picked.push(list[pick(&times)]);
    }
    shapes_of(capabilities, picked[0], picked[1])
}

fn shapes_of(capabilities: &Capabilities, matvec: Candidate, matmul: Candidate) -> Shapes {
    let low = matches!(matmul.shape, Shape::Broadcast { .. }) && matmul.tile_rows == 8;
    Shapes::by_capability(KernelChoice::Tuned, capabilities).with(matvec.shape, matmul.shape, !low)
}

/// Finds out which shapes `gpu` runs, if that is to be measured and not settled yet: from its notes, or by measuring,
/// which then goes into the notes. What goes wrong leaves the shapes by capability.
pub async fn choose_kernels(gpu: &Gpu) {
    if gpu.kernel_choice() != KernelChoice::Auto || gpu.kept::<Chosen>().is_some() {
        return;
    }
    let capabilities = gpu.capabilities();
    let shapes = match remembered(gpu.kernel_memory(), capabilities) {
        Some(shapes) => shapes,
        None => {
            let clock = Clock::start();
            let mut trials = Trials::new(gpu);
            let measure = async |family, first, candidate| trials.ratio(family, first, candidate).await;
            let shapes = choose(capabilities, BUDGET, || clock.seconds(), measure).await;
            tracing::info!(?shapes, seconds = clock.seconds(), "measured the kernels");
            Notes::of(&gpu.kernel_memory().place).add(Note::new(capabilities, shapes));
            shapes
        }
    };
    gpu.keep(|| Chosen { shapes, measured: true });
}

/// What is known of an adapter from earlier.
fn remembered(memory: &KernelMemory, capabilities: &Capabilities) -> Option<Shapes> {
    let given = memory.note.as_deref().and_then(|note| Note::parse(note)?.shapes(capabilities));
    given.or_else(|| Notes::of(&memory.place).shapes(capabilities))
}

impl Gpu {
    /// The measured choice of kernels, for [`GpuOptions::remembered_kernels`](crate::GpuOptions::remembered_kernels) of a
    /// later device; nothing before a model was loaded, and where nothing is measured. One line of JSON.
    pub fn kernels_to_remember(&self) -> Option<String> {
        let chosen = self.kept::<Chosen>().filter(|chosen| chosen.measured)?;
        Some(Note::new(self.capabilities(), chosen.shapes).text())
    }

    /// Every adapter of this machine with what it can do and the kernel variants it would run.
    pub async fn adapters() -> Vec<AdapterReport> {
        let memory = KernelMemory::default();
        let report = |capabilities: Capabilities| {
            let remembered = remembered(&memory, &capabilities);
            let by_capability = || Shapes::by_capability(KernelChoice::Tuned, &capabilities);
            let (shapes, kernels_measured) = (remembered.unwrap_or_else(by_capability), remembered.is_some());
            AdapterReport { kernels: shapes.names(), kernels_measured, capabilities }
        };
        Capabilities::of_all().await.into_iter().map(report).collect()
    }
}

/// One adapter of this machine, as `headwise adapters` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// What the adapter could give a device.
    #[serde(flatten)]
    pub capabilities: Capabilities,
    /// The variant headwise would run of each kernel that has more than one.
    pub kernels: Vec<(&'static str, &'static str)>,
    /// Whether they were measured on this adapter before; else they follow from its capabilities.
    pub kernels_measured: bool,
}
