//! The shapes of the hot kernels: what each device runs.

use super::chooser::Chosen;
use crate::gpu::{Capabilities, Gpu, KernelChoice};

/// One way to write a hot kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Plain,
    /// Workgroups of one subgroup, of a size that is known beforehand.
    Broadcast {
        lanes: u32,
    },
    Workgroup,
    Subgroup,
}

impl Shape {
    fn single(choice: KernelChoice, capabilities: &Capabilities) -> Self {
        match choice {
            KernelChoice::Plain => Self::Plain,
            KernelChoice::Workgroup => Self::Workgroup,
            KernelChoice::Broadcast => Self::broadcast(capabilities),
            KernelChoice::Auto | KernelChoice::Tuned if capabilities.software => {
                Self::broadcast(capabilities)
            }
            KernelChoice::Auto | KernelChoice::Tuned | KernelChoice::Subgroup => match capabilities.subgroups
            {
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
            Self::Plain | Self::Workgroup | Self::Subgroup => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Broadcast { .. } => "broadcast",
            Self::Workgroup => "workgroup",
            Self::Subgroup => "subgroup",
        }
    }
}

/// The shape of each family of hot kernels on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    pub matvec: Shape,
    /// Has no subgroup variant.
    pub matmul: Shape,
    /// Whether `Broadcast` matmuls take tiles of 16 rows where experts have more than 8.
    pub tall: bool,
    /// `Broadcast`, or the one other.
    pub attention: Shape,
}

impl Shapes {
    /// What `choice` means without a measurement.
    pub fn by_capability(choice: KernelChoice, capabilities: &Capabilities) -> Self {
        let shape = Shape::single(choice, capabilities);
        let matmul = if shape == Shape::Subgroup { Shape::Workgroup } else { shape };
        let attention = match shape {
            Shape::Broadcast { .. } => shape,
            Shape::Plain | Shape::Workgroup | Shape::Subgroup => Shape::Workgroup,
        };
        Self { matvec: shape, matmul, tall: true, attention }
    }

    /// Attention stays by capability whatever is measured of the others: what it lives on, broadcasts that cost less than
    /// loads, is the subgroups' and not theirs.
    pub(super) fn with(self, matvec: Shape, matmul: Shape, tall: bool) -> Self {
        Self { matvec, matmul, tall, ..self }
    }

    /// What this device runs: as chosen when its first model was loaded, and by capability where a kernel runs before.
    /// Never changes after the first call, so that buffers and dispatches agree.
    pub fn of(gpu: &Gpu) -> Self {
        Chosen::of(gpu).shapes
    }

    /// Lanes that share a row of a norm or a router, as `LANES` of `shaders/shared/reduce.wgsl`: few on software adapters,
    /// where a barrier is a loop over all of them.
    pub(super) fn row_lanes(&self) -> u32 {
        match self.matvec {
            Shape::Plain | Shape::Broadcast { .. } => 8,
            Shape::Workgroup | Shape::Subgroup => 64,
        }
    }

    /// The variant of each kernel that has more than one.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            ("routed_matvec", self.matvec.name()),
            ("routed_matmul", self.matmul.name()),
            ("row_attention", self.attention.name()),
        ]
    }
}
