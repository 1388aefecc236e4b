//! Routers: which experts each token uses, and with what weight.

use crate::{
    gpu::{Buffer, Recorder},
    layers::{Norm, RouterNet, RouterSpec, Scope, Step, Workspace},
    ops::{
        Bias, CosineRouter, Matrix, NormRouter, QueryNorm, RoutedLinear, RouterInput, Routes, Select,
        SequenceCut,
    },
};

/// The tensors of a router.
pub enum RouterWeights<M = Matrix, B = Buffer> {
    /// `[score rows, width]` and `[score rows]` f32
    Linear { weight: B, bias: Option<B> },
    /// The two layers: `[hidden, width]` with `[hidden]` f32, and `[score rows, hidden]` with `[score rows]` f32.
    Mlp { first: M, first_bias: Option<B>, second: M, second_bias: Option<B> },
    /// `[hidden, width]`, `[score rows, hidden]` f32 and `[1]` f32
    Cosine { projection: M, centroids: B, temperature: B },
    /// Nothing: the queries are the scores.
    QueryNorm,
}

/// A router ready to run.
pub struct Router<M = Matrix, B = Buffer> {
    pub spec: RouterSpec,
    pub weights: RouterWeights<M, B>,
}

impl Router {
    /// Norms the layer's input, where that comes first, and, unless the choice has to wait for the queries, makes it.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        norm: &Norm,
        step: &Step,
        routes: Routes<'_>,
    ) {
        let (tokens, choice) = (step.tokens, self.spec.choice);
        match &self.weights {
            RouterWeights::Linear { weight, bias } => {
                let (input, width) = (norm.router_input(workspace), norm.spec.width);
                let linear = |routes| {
                    let bias = bias.as_ref();
                    NormRouter { input, router: weight, bias, routes, tokens, width, choice }
                };
                let Scope::Sequence { causal } = self.spec.scope else {
                    linear(routes).record(recorder);
                    return;
                };
                let kept =
                    Routes { chosen: &workspace.kept, gates: &workspace.kept_gates, first: 0, ..routes };
                linear(kept).record(recorder);
                SequenceCut {
                    kept: &workspace.kept,
                    ranges: &workspace.ranges,
                    head_spans: &workspace.head_spans,
                    routes,
                    tokens,
                    heads: choice.experts,
                    top_k: choice.top_k,
                    sequences: step.ranges,
                    causal,
                }
                .record(recorder);
            }
            RouterWeights::Mlp { first, first_bias, second, second_bias } => {
                let RouterNet::Mlp { activation, .. } = self.spec.net else { return };
                norm.record_before(recorder, workspace, tokens);
                let (input, hidden) = (norm.input(workspace), &workspace.router_hidden);
                RoutedLinear {
                    bias: Bias::of_all(first_bias.as_ref()),
                    activation,
                    normed: norm.norms_input(),
                    ..RoutedLinear::dense(tokens, input, first, hidden)
                }
                .record(recorder);
                RoutedLinear {
                    bias: Bias::of_all(second_bias.as_ref()),
                    ..RoutedLinear::dense(tokens, hidden, second, &workspace.scores)
                }
                .record(recorder);
                self.select(recorder, workspace, tokens, routes);
            }
            RouterWeights::Cosine { projection, centroids, temperature } => {
                norm.record_before(recorder, workspace, tokens);
                let (input, hidden) = (norm.input(workspace), &workspace.router_hidden);
                let dense = RoutedLinear::dense(tokens, input, projection, hidden);
                RoutedLinear { normed: norm.norms_input(), ..dense }.record(recorder);
                CosineRouter {
                    hidden,
                    centroids,
                    temperature,
                    scores: &workspace.scores,
                    tokens,
                    experts: choice.score_rows(),
                    width: self.spec.hidden(),
                }
                .record(recorder);
                self.select(recorder, workspace, tokens, routes);
            }
            RouterWeights::QueryNorm => norm.record_before(recorder, workspace, tokens),
        }
    }

    /// Makes the choice for an input that is already there (the value router of SwitchHead).
    pub(super) fn record_linear(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        xn: &Buffer,
        width: u32,
        tokens: u32,
        routes: Routes<'_>,
    ) {
        let RouterWeights::Linear { weight, bias } = &self.weights else { return };
        NormRouter {
            input: RouterInput::AsIs { xn, spare: &workspace.scores },
            router: weight,
            bias: bias.as_ref(),
            routes,
            tokens,
            width,
            choice: self.spec.choice,
        }
        .record(recorder);
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
                first_head: self.spec.choice.shared,
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
