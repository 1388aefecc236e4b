//! Routers: which experts each token uses, and with what weight.

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{FEW_TOKENS, Norm, NormKind, NormSpec, Workspace},
    ops::{
        Activation, ExpertChoice, MAX_EXPERTS, Matrix, NormRouter, QueryNorm, RoutedMatmul, RoutedMatvec,
        Routes, Select,
    },
};

/// How a router scores experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterNet {
    /// `z = W · xn`
    Linear,
    /// `z = W₂ · activation(W₁ · xn + b₁)`
    Mlp {
        /// Outputs of the first layer.
        hidden: u32,
        activation: Activation,
    },
    /// `z_h = ‖q_h‖`: the longest queries win. No weights; the queries of all heads are computed first.
    QueryNorm,
}

/// A router: how it scores, chooses and weighs experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    pub net: RouterNet,
    pub choice: ExpertChoice,
}

impl RouterSpec {
    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.choice.experts
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.choice.slots()
    }

    /// # Errors
    /// When the numbers contradict each other or exceed what the kernels hold.
    pub fn check(&self, norm: &NormSpec) -> Result<()> {
        if self.net == RouterNet::Linear && norm.kind != NormKind::Rms {
            return Err(Error::argument("norm", "LayerNorm", "RMSNorm, before a router of one layer"));
        }
        if !(1..=MAX_EXPERTS).contains(&self.experts()) {
            return Err(Error::argument("experts", self.experts(), format!("1 to {MAX_EXPERTS}")));
        }
        let ExpertChoice { shared, top_k, experts, .. } = self.choice;
        let routed = experts.saturating_sub(shared);
        if !(1..=routed).contains(&top_k) {
            let expected = format!("1 to {routed} ({experts} experts, {shared} of them for every token)");
            return Err(Error::argument("experts per token", top_k, expected));
        }
        Ok(())
    }
}

/// The tensors of a router.
pub enum RouterWeights {
    /// `[experts, width]` f32
    Linear(Buffer),
    /// The two layers: `[hidden, width]` with `[hidden]` f32, and `[experts, hidden]`.
    Mlp { first: Matrix, bias: Buffer, second: Matrix },
    /// Nothing: the queries are the scores.
    QueryNorm,
}

/// A router ready to run.
pub struct Router {
    pub spec: RouterSpec,
    pub weights: RouterWeights,
}

impl Router {
    /// Norms the residual stream into `xn` and, unless the choice has to wait for the queries, makes it.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        norm: &Norm,
        tokens: u32,
        routes: Routes<'_>,
    ) {
        match &self.weights {
            RouterWeights::Linear(router) if norm.spec.kind == NormKind::Rms => NormRouter {
                x: &workspace.x,
                norm_weight: &norm.weight,
                router,
                xn: &workspace.xn,
                routes,
                tokens,
                width: norm.spec.width,
                choice: self.spec.choice,
                eps: norm.spec.eps,
            }
            .record(recorder),
            RouterWeights::Mlp { first, bias, second } => {
                let RouterNet::Mlp { activation, .. } = self.spec.net else { return };
                norm.record(recorder, workspace, tokens);
                let hidden = &workspace.router_hidden;
                dense(recorder, &workspace.xn, first, Some(bias), activation, hidden, tokens);
                dense(recorder, hidden, second, None, Activation::None, &workspace.scores, tokens);
                self.select(recorder, workspace, tokens, routes);
            }
            RouterWeights::Linear(_) | RouterWeights::QueryNorm => norm.record(recorder, workspace, tokens),
        }
    }

    /// Makes the choice that waited for the queries of all heads.
    pub fn record_after_queries(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        head_dim: u32,
        tokens: u32,
        routes: Routes<'_>,
    ) {
        if matches!(self.weights, RouterWeights::QueryNorm) {
            QueryNorm {
                q: &workspace.q,
                scores: &workspace.scores,
                tokens,
                heads: self.spec.experts(),
                head_dim,
            }
            .record(recorder);
            self.select(recorder, workspace, tokens, routes);
        }
    }

    fn select(&self, recorder: &mut Recorder, workspace: &Workspace, tokens: u32, routes: Routes<'_>) {
        Select { scores: &workspace.scores, routes, choice: self.spec.choice, tokens }.record(recorder);
    }
}

/// `dst = activation(W · src + bias)` in the form that fits the number of rows.
pub(super) fn dense(
    recorder: &mut Recorder,
    src: &Buffer,
    matrix: &Matrix,
    bias: Option<&Buffer>,
    activation: Activation,
    dst: &Buffer,
    rows: u32,
) {
    if rows <= FEW_TOKENS {
        RoutedMatvec {
            src,
            matrix,
            routes: None,
            gated: false,
            bias,
            activation,
            dst,
            residual: false,
            rows,
            slots: 1,
            src_div: 1,
        }
        .record(recorder);
    } else {
        RoutedMatmul { src, matrix, groups: None, bias, activation, dst, rows, src_div: 1 }.record(recorder);
    }
}
