//! The expert MLP: a feed-forward layer of which each token uses `k` experts, or a dense one.
//!
//! ```text
//! y_t = bias + Σ_s g(t,s) · Wdown[e(t,s)] · activation(Wup[e(t,s)] · x_t)
//! ```

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{Norm, NormSpec, Router, RouterNet, RouterSpec, Step, Workspace},
    ops::{Activation, Combine, Group, Matrix, MatrixShape, RoutedMatmul, RoutedMatvec, Routes, tile_rows},
};

/// What happens between the two projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpActivation {
    /// `silu(gate) · up`, gate stacked over up in the first projection.
    SwiGlu,
    /// One function of each channel.
    Plain(Activation),
}

/// Everything that distinguishes one expert MLP from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertMlpSpec {
    pub norm: NormSpec,
    /// `None` for a dense MLP: one expert for every token.
    pub router: Option<RouterSpec>,
    pub hidden: u32,
    pub activation: MlpActivation,
    /// A bias added once after the gated sum.
    pub output_bias: bool,
}

/// The tensors of an expert MLP.
pub struct ExpertMlpWeights {
    /// `[experts, halves · hidden, width]`, with SwiGLU the gate rows first
    pub up: Matrix,
    /// `[experts, width, hidden]`
    pub down: Matrix,
    /// `[width]`
    pub output_bias: Option<Buffer>,
}

impl ExpertMlpSpec {
    /// # Errors
    /// As [`RouterSpec::check`], and when the router asks for queries.
    pub fn check(&self) -> Result<()> {
        let Some(router) = &self.router else { return Ok(()) };
        if router.net == RouterNet::QueryNorm {
            return Err(Error::argument(
                "router",
                "query length",
                "one that an MLP, without queries, can ask",
            ));
        }
        router.check(&self.norm)
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.router.map_or(1, |router| router.experts())
    }

    /// Choices of a token that its router writes down.
    pub fn routes_per_token(&self) -> u32 {
        self.router.map_or(0, |router| router.active())
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.router.map_or(1, |router| router.active())
    }

    pub fn up_shape(&self) -> MatrixShape {
        MatrixShape {
            experts: self.experts(),
            halves: if self.activation == MlpActivation::SwiGlu { 2 } else { 1 },
            outputs: self.hidden,
            inputs: self.norm.width,
        }
    }

    pub fn down_shape(&self) -> MatrixShape {
        MatrixShape { experts: self.experts(), halves: 1, outputs: self.norm.width, inputs: self.hidden }
    }
}

/// An expert MLP ready to run.
pub struct ExpertMlp {
    pub spec: ExpertMlpSpec,
    pub norm: Norm,
    pub router: Option<Router>,
    pub weights: ExpertMlpWeights,
}

impl ExpertMlp {
    /// Adds the layer's output to the residual stream. `routes` is where its router writes.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        match &self.router {
            Some(router) => router.record(recorder, workspace, &self.norm, step.tokens, routes),
            None => self.norm.record(recorder, workspace, step.tokens),
        }
        let routes = self.router.is_some().then_some(routes);
        if step.few() {
            self.record_few(recorder, workspace, step, routes);
        } else {
            self.record_many(recorder, workspace, step, routes);
        }
    }

    fn activation(&self) -> Activation {
        match self.spec.activation {
            MlpActivation::SwiGlu => Activation::None,
            MlpActivation::Plain(activation) => activation,
        }
    }

    fn record_few(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        step: &Step,
        routes: Option<Routes<'_>>,
    ) {
        let active = self.spec.active();
        RoutedMatvec {
            src: &workspace.xn,
            matrix: &self.weights.up,
            routes,
            gated: false,
            bias: None,
            activation: self.activation(),
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
            routes,
            gated: routes.is_some(),
            bias: self.weights.output_bias.as_ref(),
            activation: Activation::None,
            dst: &workspace.x,
            residual: true,
            rows: step.tokens,
            slots: active,
            src_div: 1,
        }
        .record(recorder);
    }

    fn record_many(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        step: &Step,
        routes: Option<Routes<'_>>,
    ) {
        let active = self.spec.active();
        let assignments = step.tokens * active;
        let groups = &workspace.mlp_groups;
        if let Some(routes) = routes {
            Group {
                routes,
                assignments,
                experts: self.spec.experts(),
                tile_rows: tile_rows(recorder.gpu()),
                into: groups,
            }
            .record(recorder);
        }
        let up = RoutedMatmul {
            src: &workspace.xn,
            matrix: &self.weights.up,
            groups: routes.map(|_| groups),
            bias: None,
            activation: self.activation(),
            dst: &workspace.hidden,
            rows: assignments,
            src_div: active,
        };
        up.record(recorder);
        RoutedMatmul {
            src: &workspace.hidden,
            matrix: &self.weights.down,
            activation: Activation::None,
            dst: &workspace.expert_rows,
            src_div: 1,
            ..up
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
