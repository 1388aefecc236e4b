//! The expert MLP: a feed-forward layer of which each token uses `k` experts.
//!
//! ```text
//! y_t = bias + Σ_s g(t,s) · Wdown[e(t,s)] · (silu(Wgate[e] · x_t) ⊙ (Wup[e] · x_t))
//! ```

use crate::{
    Result,
    gpu::{Buffer, Recorder},
    layers::{NormSpec, RouterSpec, Step, Workspace},
    ops::{Combine, Group, Matrix, MatrixShape, NormRouter, RoutedMatmul, RoutedMatvec, Routes, tile_rows},
};

/// What happens between the two projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) · up`, gate stacked over up in the first projection.
    SwiGlu,
}

/// Everything that distinguishes one expert MLP from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertMlpSpec {
    pub norm: NormSpec,
    pub router: RouterSpec,
    pub hidden: u32,
    pub activation: Activation,
    /// A bias added once after the gated sum.
    pub output_bias: bool,
}

/// The tensors of an expert MLP.
pub struct ExpertMlpWeights {
    /// `[width]`
    pub norm: Buffer,
    /// `[experts, width]` f32
    pub router: Buffer,
    /// `[experts, 2 · hidden, width]`, gate rows first
    pub up: Matrix,
    /// `[experts, width, hidden]`
    pub down: Matrix,
    /// `[width]`
    pub output_bias: Option<Buffer>,
}

impl ExpertMlpSpec {
    /// # Errors
    /// As [`RouterSpec::check`].
    pub fn check(&self) -> Result<()> {
        self.router.check()
    }

    pub fn up_shape(&self) -> MatrixShape {
        let Activation::SwiGlu = self.activation;
        MatrixShape { experts: self.router.experts, halves: 2, outputs: self.hidden, inputs: self.norm.width }
    }

    pub fn down_shape(&self) -> MatrixShape {
        MatrixShape { experts: self.router.experts, halves: 1, outputs: self.norm.width, inputs: self.hidden }
    }
}

/// An expert MLP ready to run.
pub struct ExpertMlp {
    pub spec: ExpertMlpSpec,
    pub weights: ExpertMlpWeights,
}

impl ExpertMlp {
    /// Adds the layer's output to the residual stream. `routes` is where its router writes.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        NormRouter {
            x: &workspace.x,
            norm_weight: &self.weights.norm,
            router: &self.weights.router,
            xn: &workspace.xn,
            routes,
            tokens: step.tokens,
            width: self.spec.norm.width,
            experts: self.spec.router.experts,
            active: self.spec.router.active(),
            eps: self.spec.norm.eps,
        }
        .record(recorder);
        if step.few() {
            self.record_few(recorder, workspace, step, routes);
        } else {
            self.record_many(recorder, workspace, step, routes);
        }
    }

    fn record_few(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        let active = self.spec.router.active();
        RoutedMatvec {
            src: &workspace.xn,
            matrix: &self.weights.up,
            routes: Some(routes),
            gated: false,
            bias: None,
            dst: &workspace.hidden,
            residual: false,
            rows: step.tokens * active,
            slots: 1,
            src_div: active,
        }
        .record(recorder);
        RoutedMatvec {
            src: &workspace.hidden,
            matrix: &self.weights.down,
            routes: Some(routes),
            gated: true,
            bias: self.weights.output_bias.as_ref(),
            dst: &workspace.x,
            residual: true,
            rows: step.tokens,
            slots: active,
            src_div: 1,
        }
        .record(recorder);
    }

    fn record_many(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        let active = self.spec.router.active();
        let assignments = step.tokens * active;
        let groups = &workspace.mlp_groups;
        Group {
            routes,
            assignments,
            experts: self.spec.router.experts,
            tile_rows: tile_rows(recorder.gpu()),
            into: groups,
        }
        .record(recorder);
        RoutedMatmul {
            src: &workspace.xn,
            matrix: &self.weights.up,
            groups: Some(groups),
            bias: None,
            dst: &workspace.hidden,
            rows: assignments,
            src_div: active,
        }
        .record(recorder);
        RoutedMatmul {
            src: &workspace.hidden,
            matrix: &self.weights.down,
            groups: Some(groups),
            bias: None,
            dst: &workspace.expert_rows,
            rows: assignments,
            src_div: 1,
        }
        .record(recorder);
        Combine {
            rows: &workspace.expert_rows,
            routes,
            bias: self.weights.output_bias.as_ref(),
            x: &workspace.x,
            tokens: step.tokens,
            slots: active,
            width: self.spec.norm.width,
        }
        .record(recorder);
    }
}
