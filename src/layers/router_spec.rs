//! What a router is: how it scores, chooses and weighs experts.

use crate::{
    Error, Result,
    ops::{Activation, ExpertChoice, MAX_EXPERTS, Weighting},
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
