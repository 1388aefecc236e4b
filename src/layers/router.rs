//! Routers: which experts each token uses, and with what weight.

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{Norm, Step, Workspace},
    ops::{
        Activation, Bias, CosineRouter, ExpertChoice, MAX_EXPERTS, Matrix, NormRouter, QueryNorm,
        RoutedLinear, RouterInput, Routes, Select, SequenceCut, Weighting,
    },
};

/// How a router scores experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterNet {
    /// Not at all: there is one expert, and every token uses it.
    None,
    /// `z = W · x (+ b)`
    Linear,
    /// `z = W₂ · activation(W₁ · x (+ b₁)) (+ b₂)`
    Mlp {
        /// Outputs of the first layer.
        hidden: u32,
        activation: Activation,
    },
    /// `z_e = exp(τ) · cos(W · x, c_e)`
    Cosine {
        /// Outputs of `W`.
        hidden: u32,
    },
    /// `z_h = ‖q_h‖`: the longest queries win. No weights; the queries of all heads are computed first.
    QueryNorm,
}

/// Over what a choice is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each token by itself.
    Token,
    /// Whole sequences: every head takes as many tokens of each sequence as the busiest one (UoE). What a token gets
    /// depends on the tokens after it and on the rest of the batch.
    Sequence {
        /// Whether a head's token sees only the head's tokens before it.
        causal: bool,
    },
}

/// A router: how it scores, chooses and weighs experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    pub net: RouterNet,
    pub choice: ExpertChoice,
    pub scope: Scope,
}

impl RouterSpec {
    /// One expert for every token.
    pub fn none() -> Self {
        let choice = ExpertChoice::top_k(1, 1, Weighting::Constant);
        Self { net: RouterNet::None, choice, scope: Scope::Token }
    }

    /// A router that looks at one token at a time.
    pub fn new(net: RouterNet, choice: ExpertChoice) -> Self {
        Self { net, choice, scope: Scope::Token }
    }

    /// Whether there is a choice.
    pub fn routes(&self) -> bool {
        self.net != RouterNet::None
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.choice.experts
    }

    /// Slots of a token: experts that it uses, or may use.
    pub fn active(&self) -> u32 {
        match self.scope {
            Scope::Token => self.choice.slots(),
            Scope::Sequence { .. } => self.choice.experts,
        }
    }

    /// Choices of a token that the router writes down.
    pub fn routes_per_token(&self) -> u32 {
        if self.routes() { self.active() } else { 0 }
    }

    /// Scores of a token that the router writes down.
    pub fn scores_per_token(&self) -> u32 {
        if self.routes() { self.choice.routed() } else { 0 }
    }

    /// Outputs of the router's hidden layer.
    pub fn hidden(&self) -> u32 {
        match self.net {
            RouterNet::Mlp { hidden, .. } | RouterNet::Cosine { hidden } => hidden,
            RouterNet::None | RouterNet::Linear | RouterNet::QueryNorm => 0,
        }
    }

    pub(super) fn whole_sequences(&self) -> bool {
        matches!(self.scope, Scope::Sequence { .. })
    }

    /// # Errors
    /// When the numbers contradict each other or exceed what the kernels hold.
    pub fn check(&self) -> Result<()> {
        let ExpertChoice { shared, groups, top_k, experts, .. } = self.choice;
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return Err(Error::argument("experts", experts, format!("1 to {MAX_EXPERTS}")));
        }
        if self.net == RouterNet::None && (experts, self.choice.slots()) != (1, 1) {
            return Err(Error::argument("router", "none", "one, to choose among experts"));
        }
        let routed = experts.saturating_sub(shared);
        if groups == 0 || !routed.is_multiple_of(groups) {
            let expected = format!("a divisor of the {routed} experts that are not shared");
            return Err(Error::argument("groups of experts", groups, expected));
        }
        let group = routed / groups;
        let least = u32::from(group > 0);
        if shared > experts || !(least..=group).contains(&top_k) {
            let expected = format!(
                "{least} to {group} ({experts} experts, {shared} of them for every token, {groups} groups)"
            );
            return Err(Error::argument("experts per token", top_k, expected));
        }
        self.check_weights()
    }

    /// What the weights of shared experts ask for.
    fn check_weights(&self) -> Result<()> {
        let ExpertChoice { shared, top_k, shared_softmax, two_stage, .. } = self.choice;
        if shared_softmax && shared == 0 {
            return Err(Error::argument("shared experts", 0, "some, since they have scores"));
        }
        if two_stage && (shared == 0 || top_k == 0) {
            let found = format!("{shared} shared, {top_k} chosen");
            return Err(Error::argument("experts", found, "some of both, to weigh them in two stages"));
        }
        let scores_all = matches!(self.net, RouterNet::Linear | RouterNet::Mlp { .. });
        if (shared_softmax || two_stage) && !scores_all {
            let found = format!("{:?}", self.net);
            return Err(Error::argument("router", found, "a linear one or an MLP, to score shared experts"));
        }
        if self.whole_sequences() && (self.net != RouterNet::Linear || shared > 0 || self.choice.groups > 1) {
            let found = format!("{:?}, {shared} shared, {} groups", self.net, self.choice.groups);
            return Err(Error::argument(
                "router",
                found,
                "a linear one of all heads, to cut whole sequences",
            ));
        }
        Ok(())
    }
}

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
