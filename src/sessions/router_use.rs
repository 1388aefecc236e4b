//! How tokens used the experts: the statistics and auxiliary losses of each router, from its captured choices and
//! scores.

use serde::Serialize;

use super::{Choice, LayerRoutes, Routes};
use crate::{
    Error, Result,
    layers::RouterSpec,
    models::{RouterPlace, StackSpec},
};

/// How tokens used the experts of one router.
///
/// With p the softmax over the scores z of the routed experts (within each group, if there are several), and
/// n1(v) = v / Σ v:
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct RouterUse {
    /// Each expert's share of all choices with a gate above 0, f; sums to 1.
    pub load: Vec<f64>,
    /// Each expert's share of all gates; sums to 1.
    pub importance: Vec<f64>,
    /// −Σ load · ln load, in nats: ln E when all experts are used alike, 0 when one does everything.
    pub entropy: f64,
    /// The squared coefficient of variation of the importance (Shazeer et al. 2017, arXiv 1701.06538):
    /// `var / (mean² + 1e-10)` with the unbiased variance; 0 when all experts weigh alike.
    pub importance_cv: f64,
    /// `E · Σ_e n1(Σ_t p)_e · n1(f)_e` over the routed experts, 1 when both are uniform (Fedus et al. 2021, arXiv
    /// 2101.03961, as in MoA's code).
    pub switch_balance: f64,
    /// `mean_t (ln Σ_e exp z)²` (Zoph et al. 2022, arXiv 2202.08906).
    pub router_z: f64,
    /// `H(e|x) − H(e)` of p, in nats: the lower, the more a token tells about its experts (ModuleFormer, arXiv
    /// 2306.04640).
    pub mutual_information: f64,
    /// How undecided the router is at a token, `mean_t −Σ_e p ln p`, in nats.
    pub token_entropy: f64,
    /// Lowest kept score less best dropped score, over the tokens that drop an expert: the smallest and the mean.
    /// `None` where none is dropped.
    pub drop_margin: Option<DropMargin>,
}

/// The sizes of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct RouterShape {
    /// Experts there are.
    pub experts: usize,
    /// The first of them, which every token uses and which have no scores here.
    pub shared: usize,
    /// Equal runs of the others, each with a choice of its own.
    pub groups: usize,
    /// Experts kept of each group.
    pub top_k: usize,
}

impl RouterShape {
    /// `top_k` of `experts`, in one group, none of them shared.
    pub fn new(experts: usize, top_k: usize) -> Self {
        Self { experts, shared: 0, groups: 1, top_k }
    }

    /// The first experts, which every token uses.
    pub fn shared(mut self, experts: usize) -> Self {
        self.shared = experts;
        self
    }

    /// Equal runs of the others, of each of which `top_k` are kept.
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }
}

impl RouterUse {
    /// From the choices of tokens and their scores of the routed experts, `[tokens, experts − shared]`. `None` without
    /// tokens or when no gate is above 0.
    ///
    /// # Errors
    /// Sizes that contradict each other.
    pub fn of(shape: RouterShape, choices: &[Vec<Choice>], scores: &[f32]) -> Result<Option<Self>> {
        let RouterShape { experts, shared, groups, top_k } = shape;
        let routed = experts.saturating_sub(shared);
        let even = groups > 0 && shared <= experts && routed.is_multiple_of(groups);
        if !even || top_k > routed / groups || (top_k == 0 && routed > 0) {
            let expected = "groups that divide the routed experts, top-k from 1 to a group's size";
            return Err(Error::argument("router shape", format!("{shape:?}"), expected));
        }
        if scores.len() != choices.len() * routed {
            let expected = format!("{} tokens of {routed}", choices.len());
            return Err(Error::argument("router scores", scores.len(), expected));
        }
        let mut tally = Tally::of(shape);
        for (index, choices) in choices.iter().enumerate() {
            tally.add(choices, &scores[index * routed..(index + 1) * routed]);
        }
        Ok(tally.finish())
    }
}

/// How far dropped experts are from being kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct DropMargin {
    /// Over all tokens.
    pub smallest: f64,
    /// Over all tokens.
    pub mean: f64,
}

/// How tokens used the experts of one layer; `None` where a layer has no such router.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct LayerUse {
    /// The attention (head) experts.
    pub attention: Option<RouterUse>,
    /// The value experts of the heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional))]
    pub values: Option<RouterUse>,
    /// The head experts that attend to a translation's source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "typescript", ts(optional))]
    pub cross: Option<RouterUse>,
    /// The MLP experts.
    pub mlp: Option<RouterUse>,
}

/// Sums over the tokens of one router.
pub(crate) struct Tally {
    shape: RouterShape,
    tokens: f64,
    load: Vec<f64>,
    importance: Vec<f64>,
    /// Σ_t p of the routed experts.
    mass: Vec<f64>,
    z_squares: f64,
    entropies: f64,
    margins: Vec<f64>,
}

/// Keeps logarithms finite, as ModuleFormer's loss does.
const LOG_EPS: f64 = 1e-8;

impl Tally {
    pub fn new(router: &RouterSpec) -> Self {
        Self::of(RouterShape {
            experts: router.experts() as usize,
            shared: router.choice.shared as usize,
            groups: router.choice.groups as usize,
            top_k: router.choice.top_k as usize,
        })
    }

    fn of(shape: RouterShape) -> Self {
        let (experts, routed) = (shape.experts, shape.experts - shape.shared);
        Self {
            shape,
            tokens: 0.0,
            load: vec![0.0; experts],
            importance: vec![0.0; experts],
            mass: vec![0.0; routed],
            z_squares: 0.0,
            entropies: 0.0,
            margins: Vec::new(),
        }
    }

    /// Adds a token's choices and the scores of the routed experts.
    pub fn add(&mut self, choices: &[Choice], scores: &[f32]) {
        self.tokens += 1.0;
        for Choice { expert, gate } in choices {
            // An index comes from the GPU; the kernels write none outside.
            let Some(load) = self.load.get_mut(*expert as usize) else { continue };
            *load += f64::from(u8::from(*gate > 0.0));
            self.importance[*expert as usize] += f64::from(*gate);
        }
        let size = scores.len() / self.shape.groups;
        if size == 0 {
            return;
        }
        let mut least = f64::INFINITY;
        for (group, scores) in scores.chunks_exact(size).enumerate() {
            let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|z| (z - most).exp()).sum();
            let groups = self.shape.groups as f64;
            self.z_squares += (most + sum.ln()).powi(2) / groups;
            for (expert, z) in scores.iter().enumerate() {
                let p = (z - most).exp() / sum;
                self.mass[group * size + expert] += p / groups;
                self.entropies -= p * (p + LOG_EPS).ln() / groups;
            }
            if self.shape.top_k < size {
                let mut ranking = scores;
                ranking.sort_by(|a, b| b.total_cmp(a));
                least = least.min(ranking[self.shape.top_k - 1] - ranking[self.shape.top_k]);
            }
        }
        if least.is_finite() {
            self.margins.push(least);
        }
    }

    /// `None` without tokens or without a choice.
    pub fn finish(self) -> Option<RouterUse> {
        let (load, importance) = (shares(&self.load)?, shares(&self.importance)?);
        let entropy = -load.iter().filter(|share| **share > 0.0).map(|share| share * share.ln()).sum::<f64>();
        let marginal: f64 =
            self.mass.iter().map(|mass| mass / self.tokens).map(|p| -p * (p + LOG_EPS).ln()).sum();
        let token_entropy = self.entropies / self.tokens;
        let balance = |mass: Vec<f64>, load: Vec<f64>| {
            mass.len() as f64 * mass.iter().zip(&load).map(|(p, f)| p * f).sum::<f64>()
        };
        let routed = shares(&self.mass).zip(shares(&self.load[self.shape.shared..]));
        let count = self.margins.len() as f64;
        let drop_margin = (count > 0.0).then(|| DropMargin {
            smallest: self.margins.iter().copied().fold(f64::INFINITY, f64::min),
            mean: self.margins.iter().sum::<f64>() / count,
        });
        let importance_cv = variation(&importance, self.shape.experts);
        Some(RouterUse {
            load,
            importance,
            entropy,
            importance_cv,
            switch_balance: routed.map_or(1.0, |(mass, load)| balance(mass, load)),
            router_z: self.z_squares / self.tokens,
            mutual_information: token_entropy - marginal,
            token_entropy,
            drop_margin,
        })
    }
}

/// `v / Σ v`
fn shares(values: &[f64]) -> Option<Vec<f64>> {
    let sum: f64 = values.iter().sum();
    (sum > 0.0).then(|| values.iter().map(|value| value / sum).collect())
}

/// The squared coefficient of variation of shares.
fn variation(shares: &[f64], experts: usize) -> f64 {
    let mean = 1.0 / experts as f64;
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    let variance = if experts > 1 { squares / (experts - 1) as f64 } else { 0.0 };
    variance / (mean * mean + 1e-10)
}

impl LayerUse {
    /// The routers of a layer by what they choose, in the order of a token's choices.
    pub fn routers(&self) -> impl Iterator<Item = (&'static str, &RouterUse)> {
        let all = [
            ("attention", &self.attention),
            ("values", &self.values),
            ("cross", &self.cross),
            ("mlp", &self.mlp),
        ];
        all.into_iter().filter_map(|(name, used)| Some((name, used.as_ref()?)))
    }
}

impl LayerRoutes {
    /// The routers of a layer by what they choose.
    pub fn routers(&self) -> impl Iterator<Item = (&'static str, &[Choice])> {
        let all = [
            ("attention", &self.attention),
            ("values", &self.values),
            ("cross", &self.cross),
            ("mlp", &self.mlp),
        ];
        all.into_iter()
            .filter(|(_, choices)| !choices.is_empty())
            .map(|(name, choices)| (name, choices.as_slice()))
    }
}

impl Routes {
    /// Adds every token's choices to the tallies of the stack's routers, in their order.
    pub(crate) fn tally(&self, tallies: &mut [Tally]) {
        for (router, tally) in tallies.iter_mut().enumerate() {
            self.of_router(router).for_each(|(choices, scores)| tally.add(&choices, scores));
        }
    }
}

/// How tokens used the experts of every layer of a stack, from the tallies of its routers.
pub(crate) fn layer_use(stack: &StackSpec, tallies: Vec<Tally>) -> Vec<LayerUse> {
    let mut tallies = tallies.into_iter();
    let blocks = stack.blocks.iter().map(|block| {
        let mut used = LayerUse::default();
        for (place, _) in block.routers().filter(|(_, router)| router.routes()) {
            let at = match place {
                RouterPlace::Attention => &mut used.attention,
                RouterPlace::Values => &mut used.values,
                RouterPlace::Cross => &mut used.cross,
                RouterPlace::Mlp => &mut used.mlp,
            };
            *at = tallies.next().and_then(Tally::finish);
        }
        used
    });
    blocks.collect()
}

/// An empty tally for every router of a stack.
pub(crate) fn tallies(stack: &StackSpec) -> Vec<Tally> {
    let routers = stack.blocks.iter().flat_map(|block| block.routers());
    routers.filter(|(_, router)| router.routes()).map(|(_, router)| Tally::new(router)).collect()
}
