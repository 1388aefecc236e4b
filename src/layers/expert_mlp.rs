//! The expert MLP: a feed-forward layer of which each token uses `k` experts, or a dense one.
//!
//! ```text
//! y_t = bias + Σ_s g(t,s) · Wdown[e(t,s)] · activation(Wup[e(t,s)] · x_t + up_bias[e(t,s)])
//! ```

use crate::{
    gpu::Buffer,
    layers::{ExpertMlpSpec, Inside, MlpActivation, Norm, Pass, Place, Router, Sublayer},
    ops::{Activation, Bias, Matrix, Output, RoutedLinear, RowList, Sums},
};

/// The tensors of an expert MLP.
pub struct ExpertMlpWeights<M = Matrix, B = Buffer> {
    /// `[experts, halves · hidden, width]`, with SwiGLU the gate rows first
    pub up: M,
    /// `[experts, hidden]`
    pub up_bias: Option<B>,
    /// `[experts, width, hidden]`
    pub down: M,
    /// `[width]`
    pub output_bias: Option<B>,
}

/// An expert MLP ready to run.
pub struct ExpertMlp<M = Matrix, B = Buffer> {
    pub spec: ExpertMlpSpec,
    pub norm: Norm<B>,
    pub router: Option<Router<M, B>>,
    pub weights: ExpertMlpWeights<M, B>,
}

impl ExpertMlp {
    /// Adds the layer's output to the residual stream. Its router writes where the pass's routes stand.
    pub fn record(&self, pass: &mut Pass<'_, '_>) {
        let (workspace, step) = (pass.workspace, pass.step);
        let routes = self.router.as_ref().map(|router| pass.routes.next(&router.spec));
        match (&self.router, routes) {
            (Some(router), Some(routes)) => router.record(pass.recorder, workspace, &self.norm, step, routes),
            _ => self.norm.record_before(pass.recorder, workspace, step.tokens),
        }
        let (active, experts) = (self.spec.active(), self.spec.experts());
        let choice = routes.map(|_| self.spec.router.choice);
        let inside = Inside::Mlp { hidden: self.spec.hidden };
        let rows = match routes {
            None => RowList::dense(step.tokens),
            Some(routes) => RowList::routed(step.tokens, active, experts, routes, &workspace.mlp_groups),
        };
        if routes.is_some() {
            pass.reach(Sublayer::Mlp, Place::Routes, rows, choice, inside);
        }
        rows.sort(pass.recorder);
        RoutedLinear {
            rows,
            src: self.norm.input(workspace),
            src_div: active,
            normed: self.norm.norms_input(),
            matrix: &self.weights.up,
            bias: self.up_bias(),
            activation: self.activation(),
            output: Output::Each(&workspace.hidden),
            alongside: None,
        }
        .record(pass.recorder);
        pass.reach(Sublayer::Mlp, Place::Hidden, rows, choice, inside);
        RoutedLinear {
            rows,
            src: &workspace.hidden,
            src_div: 1,
            normed: false,
            matrix: &self.weights.down,
            bias: Bias::None,
            activation: Activation::None,
            output: Output::Sums(Sums {
                dst: &workspace.x,
                of: active,
                bias: self.weights.output_bias.as_ref(),
                residual: true,
                products: &workspace.expert_rows,
            }),
            alongside: None,
        }
        .record(pass.recorder);
        self.norm.record_after(pass.recorder, workspace, step.tokens);
        pass.reach(Sublayer::Mlp, Place::Output, rows, choice, inside);
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
}
