//! The variants of the hot kernels: what each device runs.

use super::Precision;
use crate::gpu::{Capabilities, Gpu, KernelChoice};

/// One way to write a hot kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Plain,
    /// Workgroups of one subgroup, of a size that is known beforehand.
    Broadcast {
        lanes: u32,
    },
    Workgroup,
    Subgroup,
    /// As `Workgroup`, with products of 16-bit floats.
    F16,
    /// As `Workgroup`, with products of 8-bit integers.
    Packed,
}

impl Variant {
    fn single(choice: KernelChoice, capabilities: &Capabilities) -> Self {
        match choice {
            KernelChoice::Plain => Self::Plain,
            KernelChoice::Workgroup => Self::Workgroup,
            KernelChoice::Broadcast => Self::broadcast(capabilities),
            KernelChoice::Auto | KernelChoice::Tuned if capabilities.software => {
                Self::broadcast(capabilities)
            }
            KernelChoice::Auto
            | KernelChoice::Tuned
            | KernelChoice::Subgroup
            | KernelChoice::F16
            | KernelChoice::Packed => match capabilities.subgroups {
                Some(_) => Self::Subgroup,
                None => Self::Workgroup,
            },
        }
    }

    /// Where every subgroup has the same size, and one that the kernels are written for.
    pub(super) fn broadcast(capabilities: &Capabilities) -> Self {
        match capabilities.subgroups {
            Some((lanes, most)) if lanes == most && matches!(lanes, 4 | 8 | 16) => Self::Broadcast { lanes },
            _ => Self::Plain,
        }
    }

    /// The constant of `shaders/shared/broadcast.wgsl`.
    pub(super) fn lanes(self) -> Option<(&'static str, f64)> {
        match self {
            Self::Broadcast { lanes } => Some(("LANES", f64::from(lanes))),
            Self::Plain | Self::Workgroup | Self::Subgroup | Self::F16 | Self::Packed => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Broadcast { .. } => "broadcast",
            Self::Workgroup => "workgroup",
            Self::Subgroup => "subgroup",
            Self::F16 => "f16",
            Self::Packed => "packed",
        }
    }
}

/// The variant of each family of hot kernels on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variants {
    pub matvec: Variant,
    /// Has no subgroup variant.
    pub matmul: Variant,
    /// Whether `Broadcast` matmuls take tiles of 16 rows where experts have more than 8.
    pub tall: bool,
    /// Whether matvecs and matmuls of quantised weights are `Packed`; the matmul then has tiles as high as a packed one's.
    pub packed: Packed,
    /// `Broadcast`, or the one other.
    pub attention: Variant,
    /// Lanes that share a row of a norm or a router, as `LANES` of `shaders/shared/reduce.wgsl`: few on software adapters,
    /// where a barrier is a loop over all of them.
    pub row_lanes: u32,
}

/// Which products of quantised weights are of 8-bit integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub matvec: bool,
    pub matmul: bool,
}

impl Variants {
    /// What `choice` means without a measurement.
    pub fn by_capability(choice: KernelChoice, capabilities: &Capabilities) -> Self {
        let variant = Variant::single(choice, capabilities);
        let workgroup = match variant {
            Variant::Plain | Variant::Broadcast { .. } => None,
            Variant::Workgroup | Variant::Subgroup | Variant::F16 | Variant::Packed => {
                Some(Variant::Workgroup)
            }
        };
        let matmul = match choice {
            KernelChoice::F16 if capabilities.shader_f16 => Variant::F16,
            _ => workgroup.unwrap_or(variant),
        };
        let packed = choice == KernelChoice::Packed;
        Self {
            matvec: variant,
            matmul,
            tall: true,
            packed: Packed { matvec: packed, matmul: packed },
            attention: if let Variant::Broadcast { .. } = variant { variant } else { Variant::Workgroup },
            row_lanes: if workgroup.is_some() { 64 } else { 8 },
        }
    }

    /// What is not measured stays by capability. Attention lives on broadcasts that cost less than loads, which is the
    /// subgroups' and not the other kernels'.
    pub(super) fn with(self, matvec: Variant, matmul: Variant, tall: bool, packed: Packed) -> Self {
        Self { matvec, matmul, tall, packed, ..self }
    }

    /// What this device runs: as chosen when its first model was loaded, and by capability where a kernel runs before.
    /// Never changes after the first call, so that buffers and dispatches agree.
    pub fn of(gpu: &Gpu) -> Self {
        Chosen::of(gpu).variants
    }

    /// The variant of a matvec of weights that are stored so.
    pub(crate) fn matvec_of(&self, precision: Precision) -> Variant {
        if self.packed.matvec && precision.is_quantized() { Variant::Packed } else { self.matvec }
    }

    /// The variant of a matmul of weights that are stored so. Those in f32 are not rounded, nor inputs that may pass the
    /// 65,504 of 16-bit floats, as the hidden values of an MLP do.
    pub(crate) fn matmul_of(&self, precision: Precision, bounded: bool) -> Variant {
        match self.matmul {
            _ if self.packed.matmul && precision.is_quantized() => Variant::Packed,
            Variant::F16 if precision == Precision::F32 || !bounded => Variant::Workgroup,
            variant => variant,
        }
    }

    /// The variant of each kernel that has more than one, and that of quantised weights where it is another.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        let mut names = vec![
            ("routed_matvec", self.matvec.name()),
            ("routed_matmul", self.matmul.name()),
            ("row_attention", self.attention.name()),
        ];
        let packed = [
            (self.packed.matvec, "routed_matvec of quantised weights"),
            (self.packed.matmul, "routed_matmul of quantised weights"),
        ];
        names.extend(packed.iter().filter(|(is, _)| *is).map(|(_, name)| (*name, Variant::Packed.name())));
        names
    }
}

/// What a device runs, and how that was measured, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub variants: Variants,
    pub measured: Option<Measured>,
}

/// How far a measurement got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// To the end, or for the second time.
    Fully,
    /// The budget ended it: the next device measures once more, when drivers have compiled what this one waited for.
    Partly,
}

impl Chosen {
    pub fn of(gpu: &Gpu) -> Self {
        // Another type is never kept, so there is always an answer.
        gpu.keep(|| Self::by_capability(gpu)).unwrap_or_else(|| Self::by_capability(gpu))
    }

    fn by_capability(gpu: &Gpu) -> Self {
        let variants = Variants::by_capability(gpu.kernel_choice(), gpu.capabilities());
        Self { variants, measured: None }
    }
}
