//! The experts that tokens chose, as read back from the GPU.

use serde::Serialize;

use super::readback::finite;
use crate::{
    Result,
    models::{RouterPlace, StackSpec},
};

/// One chosen expert and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Choice {
    /// The expert's index.
    pub expert: u32,
    /// Its gate.
    pub gate: f32,
}

impl Choice {
    /// This expert with this gate.
    pub fn new(expert: u32, gate: f32) -> Self {
        Self { expert, gate }
    }
}

/// The choices of one token in one layer; those of one router are in the order of its slots: shared experts, then the
/// others best first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct LayerRoutes {
    /// Attention (head) experts.
    pub attention: Vec<Choice>,
    /// Value experts of the heads (SwitchHead).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "typescript", ts(optional, as = "Option<Vec<Choice>>"))]
    pub values: Vec<Choice>,
    /// Head experts that attend to the source of a translation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "typescript", ts(optional, as = "Option<Vec<Choice>>"))]
    pub cross: Vec<Choice>,
    /// MLP experts.
    pub mlp: Vec<Choice>,
}

impl LayerRoutes {
    /// What a router chose.
    pub(super) fn of(&self, place: RouterPlace) -> &[Choice] {
        match place {
            RouterPlace::Attention => &self.attention,
            RouterPlace::Values => &self.values,
            RouterPlace::Cross => &self.cross,
            RouterPlace::Mlp => &self.mlp,
        }
    }

    fn at(&mut self, place: RouterPlace) -> &mut Vec<Choice> {
        match place {
            RouterPlace::Attention => &mut self.attention,
            RouterPlace::Values => &mut self.values,
            RouterPlace::Cross => &mut self.cross,
            RouterPlace::Mlp => &mut self.mlp,
        }
    }
}

/// The choices of one token in every layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct TokenRoutes {
    /// Layer by layer.
    pub layers: Vec<LayerRoutes>,
}

/// The choices of one kind of router in one array, as vLLM returns `routed_experts`: `[tokens, layers, k]`, row after row.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct RouteArray {
    /// Tokens, layers, and the most slots that a token has in one.
    pub shape: [usize; 3],
    /// The chosen experts; −1 in slots that a token leaves empty, and in layers without such a router.
    pub experts: Vec<i32>,
    /// Their gates; 0 there.
    pub gates: Vec<f32>,
}

impl RouteArray {
    /// The head experts of tokens: `routed_heads`.
    pub fn heads(tokens: &[TokenRoutes]) -> Self {
        Self::of(tokens, |layer| &layer.attention)
    }

    /// The MLP experts of tokens: `routed_experts`.
    pub fn experts(tokens: &[TokenRoutes]) -> Self {
        Self::of(tokens, |layer| &layer.mlp)
    }

    fn of(tokens: &[TokenRoutes], kind: impl Fn(&LayerRoutes) -> &[Choice]) -> Self {
        let layers = tokens.iter().map(|token| token.layers.len()).max().unwrap_or(0);
        let each = tokens.iter().flat_map(|token| &token.layers).map(|layer| kind(layer).len()).max();
        let each = each.unwrap_or(0);
        let (mut experts, mut gates) = (Vec::new(), Vec::new());
        for (row, token) in (1..).zip(tokens) {
            for (slot, layer) in (1..).zip(&token.layers) {
                let choices = kind(layer);
                experts.extend(choices.iter().map(|choice| choice.expert as i32));
                gates.extend(choices.iter().map(|choice| choice.gate));
                let end = ((row - 1) * layers + slot) * each;
                experts.resize(end, -1);
                gates.resize(end, 0.0);
            }
            experts.resize(row * layers * each, -1);
            gates.resize(row * layers * each, 0.0);
        }
        Self { shape: [tokens.len(), layers, each], experts, gates }
    }
}

/// One router of a stack, and where its choices stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouterRoutes {
    pub layer: usize,
    pub place: RouterPlace,
    pub experts: u32,
    /// Slots of a token, and slots of routers before this one.
    pub slots: usize,
    pub before: usize,
    /// Scores of a token, and scores of routers before this one.
    scores: usize,
    scores_before: usize,
}

impl RouterRoutes {
    /// The routers of a stack, in the order in which they write down their choices.
    pub fn of(stack: &StackSpec) -> Vec<Self> {
        let (mut before, mut scores_before) = (0, 0);
        let mut routers = Vec::new();
        for (layer, block) in stack.blocks.iter().enumerate() {
            for (place, router) in block.routers().filter(|(_, router)| router.routes()) {
                let slots = router.routes_per_token() as usize;
                let scores = router.scores_per_token() as usize;
                let experts = router.experts();
                routers.push(Self { layer, place, experts, slots, before, scores, scores_before });
                before += slots;
                scores_before += scores;
            }
        }
        routers
    }
}

/// The choices of the tokens of one step. Its serialised form is a list of [`TokenRoutes`].
#[derive(Clone, Debug)]
pub struct Routes {
    tokens: usize,
    layers: usize,
    routers: Vec<RouterRoutes>,
    /// Router after router, `[tokens, slots]` each.
    chosen: Vec<u32>,
    gates: Vec<f32>,
    /// Router after router, `[tokens, routed experts]` each; empty where they were not read.
    scores: Vec<f32>,
}

impl Routes {
    /// From the front of a workspace's `chosen` and `gates`, one after the other, and perhaps its `route_scores`.
    ///
    /// # Errors
    /// [`Error::NotFinite`](crate::Error::NotFinite) where a gate or a score is not.
    pub(crate) fn new(stack: &StackSpec, tokens: usize, bytes: &[u8]) -> Result<Self> {
        let routers = RouterRoutes::of(stack);
        let before: usize = routers.iter().map(|router| router.slots).sum();
        let (chosen, rest) = bytes.split_at(4 * tokens * before);
        let (gates, scores) = rest.split_at(4 * tokens * before);
        Ok(Self {
            tokens,
            layers: stack.blocks.len(),
            routers,
            chosen: bytemuck::pod_collect_to_vec(chosen),
            gates: finite("the gates", bytemuck::pod_collect_to_vec(gates))?,
            scores: finite("the routers' scores", bytemuck::pod_collect_to_vec(scores))?,
        })
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The choices of token `index`.
    pub fn token(&self, index: usize) -> TokenRoutes {
        let mut layers = vec![LayerRoutes::default(); self.layers];
        for router in &self.routers {
            layers[router.layer].at(router.place).extend(self.choices(router, index));
        }
        TokenRoutes { layers }
    }

    /// The choices of each token in turn.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = TokenRoutes> {
        (0..self.tokens).map(|index| self.token(index))
    }

    /// The routers of a layer: which, where it stands, slots of a token, experts that it scores.
    pub(super) fn routers_of(
        &self,
        layer: usize,
    ) -> impl Iterator<Item = (usize, RouterPlace, usize, usize)> {
        let own = self.routers.iter().enumerate().filter(move |(_, router)| router.layer == layer);
        own.map(|(number, router)| (number, router.place, router.slots, router.scores))
    }

    /// What a stack's router, by its number, chose for each token, and the scores it chose by where they were read.
    pub(super) fn of_router(&self, router: usize) -> impl Iterator<Item = (Vec<Choice>, &[f32])> {
        self.routers.get(router).into_iter().flat_map(move |router| {
            (0..self.tokens).map(move |index| {
                let from = router.scores_before * self.tokens + index * router.scores;
                let scores = self.scores.get(from..from + router.scores).unwrap_or_default();
                (self.choices(router, index).collect(), scores)
            })
        })
    }

    fn choices(&self, router: &RouterRoutes, index: usize) -> impl Iterator<Item = Choice> {
        let from = router.before * self.tokens + index * router.slots;
        let slots = self.chosen[from..].iter().zip(&self.gates[from..]).take(router.slots);
        // A slot that no expert took (`NOBODY` in the shaders) is no choice.
        let taken = slots.filter(|(expert, _)| **expert != u32::MAX);
        taken.map(|(&expert, &gate)| Choice { expert, gate })
    }
}

impl Serialize for Routes {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}
