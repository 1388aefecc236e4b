//! Normalisation.

use crate::{
    gpu::{Buffer, Recorder},
    layers::{NormPlacement, NormSpec, Workspace},
    ops::{NormInput, NormRows, RouterInput},
};

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

    /// Norms these rows where they are.
    pub fn record_in_place(&self, recorder: &mut Recorder, rows: &Buffer, count: u32) {
        self.rows(recorder, NormInput::InPlace, rows, count);
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
