//! What a norm is, and where its layer has it.

use crate::ops::NormKind;

/// Where a layer `f` has its norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`
    #[default]
    Before,
    /// `norm(x + f(x))`
    After,
    /// `x + f(what the layer before this one normed)`: parallel blocks. No weights.
    Shared,
    /// `x + f(x)`; the norm that would follow is the stack's last.
    None,
}

/// The sizes of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub width: u32,
    pub eps: f32,
    pub placement: NormPlacement,
}

impl NormSpec {
    /// A norm before its layer.
    pub fn before(kind: NormKind, width: u32, eps: f32) -> Self {
        Self { kind, width, eps, placement: NormPlacement::Before }
    }

    /// Rows of the norm's tensor: weight, and bias of a LayerNorm.
    pub fn rows(&self) -> u32 {
        match (self.placement, self.kind) {
            (NormPlacement::Shared | NormPlacement::None, _) => 0,
            (_, NormKind::Rms) => 1,
            (_, NormKind::Layer) => 2,
        }
    }
}
