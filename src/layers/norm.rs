//! Normalisation.

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::{NormInput, NormKind, NormRows, RouterInput},
};

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

/// A norm with its weights.
pub struct Norm<B = Buffer> {
    pub spec: NormSpec,
    /// `[rows, width]` f32; `None` where the norm is another layer's
    pub weights: Option<B>,
}

impl Norm {
    /// What the layer reads, once [`Norm::record_before`] ran.
    pub fn input<'a>(&self, workspace: &'a Workspace) -> &'a Buffer {
        match self.spec.placement {
            NormPlacement::Before | NormPlacement::Shared => &workspace.xn,
            NormPlacement::After | NormPlacement::None => &workspace.x,
        }
    }

    /// Whether [`Norm::input`] comes from a norm.
    pub(super) fn norms_input(&self) -> bool {
        self.spec.placement != NormPlacement::None
    }

    /// What a router scores; where it norms, [`Norm::record_before`] need not run.
    pub(super) fn router_input<'a>(&'a self, workspace: &'a Workspace) -> RouterInput<'a> {
        match (&self.weights, self.spec.placement) {
            (Some(weights), NormPlacement::Before) => RouterInput::Normed {
                kind: self.spec.kind,
                eps: self.spec.eps,
                weights,
                x: &workspace.x,
                xn: &workspace.xn,
            },
            _ => RouterInput::AsIs { xn: self.input(workspace), spare: &workspace.scores },
        }
    }

    /// Norms the residual stream into `xn`, where the norm comes before its layer.
    pub fn record_before(&self, recorder: &mut Recorder, workspace: &Workspace, tokens: u32) {
        if self.spec.placement == NormPlacement::Before {
            self.rows(recorder, NormInput::Rows(&workspace.x), &workspace.xn, tokens);
        }
    }

    /// Norms the residual stream itself, where the norm comes after its layer.
    pub fn record_after(&self, recorder: &mut Recorder, workspace: &Workspace, tokens: u32) {
        if self.spec.placement == NormPlacement::After {
            self.rows(recorder, NormInput::InPlace, &workspace.x, tokens);
        }
    }

    /// Norms the rows of the residual stream that want logits.
    pub fn record_last(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let input = NormInput::Chosen(&workspace.x, &workspace.logit_rows);
        self.rows(recorder, input, &workspace.last, rows);
    }

    fn rows(&self, recorder: &mut Recorder, x: NormInput<'_>, y: &Buffer, count: u32) {
        let Some(weights) = &self.weights else { return };
        let NormSpec { kind, width, eps, .. } = self.spec;
        NormRows { kind, x, weights, y, count, width, eps }.record(recorder);
    }
}
