//! The expert MLP: a feed-forward layer of which each token uses `k` experts, or a dense one.
//!
//! ```text
//! y_t = bias + Σ_s g(t,s) · Wdown[e(t,s)] · activation(Wup[e(t,s)] · x_t + up_bias[e(t,s)])
//! ```

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{Norm, NormSpec, RouteCursor, Router, RouterNet, RouterSpec, Step, Workspace},
    ops::{
        Activation, Bias, Combine, Group, Matrix, MatrixShape, RoutedMatmul, RoutedMatvec, Routes, tile_rows,
    },
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
    /// Of one expert for a dense MLP.
    pub router: RouterSpec,
    pub hidden: u32,
    pub activation: MlpActivation,
}

/// The tensors of an expert MLP.
pub struct ExpertMlpWeights {
    /// `[experts, halves · hidden, width]`, with SwiGLU the gate rows first
    pub up: Matrix,
    /// `[experts, hidden]`
    pub up_bias: Option<Buffer>,
    /// `[experts, width, hidden]`
    pub down: Matrix,
    /// `[width]`
    pub output_bias: Option<Buffer>,
}

impl ExpertMlpSpec {
    /// # Errors
    /// As [`RouterSpec::check`], and when the router asks for queries or whole sequences.
    pub fn check(&self) -> Result<()> {
        if self.router.net == RouterNet::QueryNorm || self.router.whole_sequences() {
            let found = format!("{:?} of {:?}", self.router.net, self.router.scope);
            return Err(Error::argument("router", found, "one that an MLP can ask about a token's input"));
        }
        self.router.check()
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.router.experts()
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.router.active()
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
    /// Adds the layer's output to the residual stream. Its router writes where `routes` stands.
    pub fn record<'a>(
        &self,
        recorder: &mut Recorder,
        workspace: &'a Workspace,
        step: &Step,
        routes: &mut RouteCursor<'a>,
    ) {
        let routes = self.router.as_ref().map(|router| routes.next(&router.spec));
        match (&self.router, routes) {
            (Some(router), Some(routes)) => router.record(recorder, workspace, &self.norm, step, routes),
            _ => self.norm.record_before(recorder, workspace, step.tokens),
        }
        if step.few() {
            self.record_few(recorder, workspace, step, routes);
        } else {
            self.record_many(recorder, workspace, step, routes);
        }
        self.norm.record_after(recorder, workspace, step.tokens);
    }

    fn up_bias(&self) -> Bias<'_> {
        match (&self.weights.up_bias, self.router.is_some()) {
            (None, _) => Bias::None,
            (Some(bias), false) => Bias::OfAll(bias),
            (Some(bias), true) => Bias::OfExpert(bias),
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
            beside: None,
            src: self.norm.input(workspace),
            matrix: &self.weights.up,
            routes,
            gated: false,
            bias: self.up_bias(),
            activation: self.activation(),
            dst: &workspace.hidden,
            residual: false,
            rows: step.tokens * active,
            slots: 1,
            src_div: active,
        }
        .record(recorder);
        RoutedMatvec {
            beside: None,
            src: &workspace.hidden,
            matrix: &self.weights.down,
            routes,
            gated: routes.is_some(),
            bias: Bias::of_all(self.weights.output_bias.as_ref()),
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
                tile_rows: tile_rows(recorder.gpu(), assignments, self.spec.experts()),
                into: groups,
            }
            .record(recorder);
        }
        let up = RoutedMatmul {
            src: self.norm.input(workspace),
            matrix: &self.weights.up,
            groups: routes.map(|_| groups),
            bias: self.up_bias(),
            activation: self.activation(),
            dst: &workspace.hidden,
            rows: assignments,
            src_div: active,
        };
        up.record(recorder);
        RoutedMatmul {
            src: &workspace.hidden,
            matrix: &self.weights.down,
            bias: Bias::None,
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
            residual: true,
            tokens: step.tokens,
            slots: active,
            width: self.spec.norm.width,
        }
        .record(recorder);
    }
}
