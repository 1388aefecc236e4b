//! The measured choice of variants: each candidate does a little typical work once on an adapter, and the answer is kept.

mod notes;
mod trial;

use serde::Serialize;

use super::{
    Packed, Variant, Variants,
    variant::{Chosen, Measured},
};
use crate::gpu::{Capabilities, Clock, Gpu, KernelChoice, KernelMemory};
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::{aside, block_on};

use notes::Note;
pub use notes::Notes;
use trial::Trials;

/// Seconds that a whole choice may take, compiling included.
const BUDGET: f64 = 0.3;

/// A candidate replaces the variant by capability if it takes this share less time in every round, so that noise decides
/// nothing: the choice is kept.
pub const MARGIN: f64 = 0.15;

/// Times the slowest matvec that the first matmul is expected to take: what compiling it takes on Mesa's software driver
/// (0.27 s against 0.08).
const MATMUL_COST: f64 = 3.0;

/// Kernels among whose variants one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Routed linear for few rows.
    Matvec,
    /// Routed linear for many.
    Matmul,
    /// The first with quantised weights.
    QuantizedMatvec,
    /// The second with quantised weights.
    QuantizedMatmul,
}

/// A variant that may be the fastest of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub variant: Variant,
    /// Rows of a tile; 1 in a matvec.
    pub tile_rows: u32,
}

/// The variant by capability, then the others that this device can run and that can win.
///
/// Workgroup memory cannot win on software adapters, which run a barrier as a loop over all lanes and emulate 16-bit floats.
/// Matvecs have no f16 variant: they wait for weights.
pub fn candidates(family: Family, capabilities: &Capabilities) -> Vec<Candidate> {
    let by_capability = Variants::by_capability(KernelChoice::Tuned, capabilities);
    let broadcast = Variant::broadcast(capabilities);
    let (first, tiles): (Variant, fn(Variant) -> &'static [u32]) = match family {
        Family::Matvec | Family::QuantizedMatvec => (by_capability.matvec, |_| &[1]),
        Family::Matmul | Family::QuantizedMatmul => (by_capability.matmul, |variant| match variant {
            Variant::Plain => &[8],
            Variant::Broadcast { .. } => &[16, 8],
            Variant::Workgroup | Variant::Subgroup | Variant::F16 | Variant::Packed => &[32],
        }),
    };
    let others: &[Variant] = match family {
        Family::QuantizedMatvec | Family::QuantizedMatmul if capabilities.software => &[],
        Family::QuantizedMatvec | Family::QuantizedMatmul => &[Variant::Packed],
        _ if capabilities.software => &[broadcast, Variant::Plain],
        Family::Matmul if capabilities.shader_f16 => &[Variant::F16, broadcast, Variant::Plain],
        _ => &[Variant::Workgroup, broadcast, Variant::Plain],
    };
    let mut variants = vec![first];
    for &other in others {
        if !variants.contains(&other) {
            variants.push(other);
        }
    }
    let with_tiles = |variant| tiles(variant).iter().map(move |&tile_rows| Candidate { variant, tile_rows });
    variants.into_iter().flat_map(with_tiles).collect()
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

/// Measures the candidates of each family, first the variant by capability, and picks. `measure` gets a family, its first
/// candidate and one of its candidates, and returns a time in times of the first one's.
///
/// Before each candidate the clock is asked: where what is left of `budget` seconds is less than the slowest candidate so
/// far of matvecs or of matmuls took, the rest of the family go without a time. The matvec comes first, whose kernels compile
/// sooner; where they did so slowly that the matmul's would not fit, these are left alone. A family without alternatives is
/// not measured. With quantised weights, the first candidate is the one picked without.
///
/// Also says whether the budget was enough.
pub async fn choose(
    capabilities: &Capabilities,
    budget: f64,
    clock: impl Fn() -> f64,
    mut measure: impl AsyncFnMut(Family, Candidate, Candidate) -> Option<f64>,
) -> (Variants, Measured) {
    let mut measured = Measured::Fully;
    // Of matvecs and of matmuls.
    let (mut picked, mut slowest) = (Vec::<Candidate>::new(), [0.0_f64; 2]);
    let families = [Family::Matvec, Family::Matmul, Family::QuantizedMatvec, Family::QuantizedMatmul];
    for (index, family) in families.into_iter().enumerate() {
        let mut list = candidates(family, capabilities);
        if let Some(&float) = index.checked_sub(2).and_then(|float| picked.get(float)) {
            // Tiles are cut before anybody knows which weights they are for.
            let packed = |one: &Candidate| one.variant == Variant::Packed && one.tile_rows == float.tile_rows;
            list = std::iter::once(float).chain(list.into_iter().filter(packed)).collect();
        }
        let kind = index % 2;
        let mut expected = if family == Family::Matmul { MATMUL_COST * slowest[0] } else { slowest[kind] };
        let mut times = Vec::new();
        for &candidate in list.iter().filter(|_| list.len() > 1) {
            let before = clock();
            if before + expected >= budget {
                measured = Measured::Partly;
                break;
            }
            let time = measure(family, list[0], candidate).await;
            let took = clock() - before;
            tracing::debug!(?family, ?candidate, ?time, took, "measured");
            times.push(time);
            slowest[kind] = slowest[kind].max(took);
            expected = slowest[kind];
        }
        picked.push(list[pick(&times)]);
    }
    let packed = |index: usize| picked[index].variant == Variant::Packed;
    let packed = Packed { matvec: packed(2), matmul: packed(3) };
    (variants_of(capabilities, picked[0], picked[1], packed), measured)
}

fn variants_of(
    capabilities: &Capabilities,
    matvec: Candidate,
    matmul: Candidate,
    packed: Packed,
) -> Variants {
    let low = matches!(matmul.variant, Variant::Broadcast { .. }) && matmul.tile_rows == 8;
    Variants::by_capability(KernelChoice::Tuned, capabilities).with(
        matvec.variant,
        matmul.variant,
        !low,
        packed,
    )
}

/// Finds out which variants `gpu` runs, if that is to be measured and not settled yet: from its notes, or by measuring,
/// which then goes into the notes. What goes wrong leaves the variants by capability.
pub async fn choose_kernels(gpu: &Gpu) {
    if gpu.kernel_choice() != KernelChoice::Auto || gpu.kept::<Chosen>().is_some() {
        return;
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        // What the device reports meanwhile belongs to the thread that works.
        let gpu = gpu.clone();
        aside("kernels", move || block_on(find_kernels(&gpu))).await;
    }
    #[cfg(target_arch = "wasm32")]
    find_kernels(gpu).await;
}

/// Finds out, and keeps it with the device.
async fn find_kernels(gpu: &Gpu) {
    let capabilities = gpu.capabilities();
    let (variants, measured) = match remembered(gpu.kernel_memory(), capabilities) {
        Some((variants, Measured::Fully)) => (variants, Measured::Fully),
        before => {
            let clock = Clock::start();
            let mut trials = Trials::new(gpu);
            let measure = async |family, first, candidate| trials.ratio(family, first, candidate).await;
            let (variants, mut measured) = choose(capabilities, BUDGET, || clock.seconds(), measure).await;
            tracing::info!(?variants, ?measured, seconds = clock.seconds(), "measured the kernels");
            if before.is_some() {
                // Where drivers keep nothing that they compiled, a third time would end as these did.
                measured = Measured::Fully;
            }
            Notes::of(&gpu.kernel_memory().place).add(Note::new(capabilities, variants, measured));
            (variants, measured)
        }
    };
    gpu.keep(|| Chosen { variants, measured: Some(measured) });
}

/// What is known of an adapter from earlier.
fn remembered(memory: &KernelMemory, capabilities: &Capabilities) -> Option<(Variants, Measured)> {
    let given = memory.note.as_deref().and_then(|note| Note::parse(note)?.variants(capabilities));
    given.or_else(|| Notes::of(&memory.place).variants(capabilities))
}

impl Gpu {
    /// The measured choice of kernels, for [`GpuOptions::remembered_kernels`](crate::GpuOptions::remembered_kernels) of a
    /// later device; nothing before a model was loaded, and where nothing is measured. One line of JSON.
    pub fn kernels_to_remember(&self) -> Option<String> {
        let chosen = self.kept::<Chosen>()?;
        Some(Note::new(self.capabilities(), chosen.variants, chosen.measured?).text())
    }

    /// Every adapter of this machine with what it can do and the kernel variants it would run.
    pub async fn adapters() -> Vec<AdapterReport> {
        let memory = KernelMemory::default();
        let report = |(number, capabilities): (usize, Capabilities)| {
            let remembered = remembered(&memory, &capabilities).map(|(variants, _)| variants);
            let by_capability = || Variants::by_capability(KernelChoice::Tuned, &capabilities);
            let (variants, kernels_measured) =
                (remembered.unwrap_or_else(by_capability), remembered.is_some());
            AdapterReport { number, kernels: variants.names(), kernels_measured, capabilities }
        };
        Capabilities::of_all().await.into_iter().enumerate().map(report).collect()
    }
}

/// One adapter of this machine, as `headwise adapters` shows it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct AdapterReport {
    /// Its number, for [`AdapterSelection::Number`](crate::AdapterSelection::Number).
    pub number: usize,
    /// What the adapter could give a device.
    #[serde(flatten)]
    pub capabilities: Capabilities,
    /// The variant headwise would run of each kernel that has more than one.
    pub kernels: Vec<(&'static str, &'static str)>,
    /// Whether they were measured on this adapter before; else they follow from its capabilities.
    pub kernels_measured: bool,
}
