//! Routers: which experts a token keeps, and how much of each. What differs between MoA, JetMoE, MoLM, SUT,
//! MoH, BAM and SwitchHead is a choice in this struct.
//!
//! ```text
//! z = net(x)                                                  [groups, experts of a group]
//! S = the k highest z of each group, or all of them
//! g = [α_0 · shared weights, α_1 · weight(z, S)]              the shared experts first
//! ```

use super::{
    activations::{Activation, sigmoid},
    dot, matvec,
    norm_router::Routes,
    softmax,
};

/// A router without its input.
#[derive(Clone, Debug)]
pub struct Router {
    /// Experts, E, the shared ones included.
    pub experts: usize,
    /// The first experts of all, which every token keeps, hs.
    pub shared: usize,
    /// The E − hs routed experts fall into this many equal runs of neighbours, each with its own selection:
    /// 1, or the number of heads in SwitchHead.
    pub groups: usize,
    /// What scores the routed experts.
    pub net: Net,
    /// Which of a group are kept.
    pub select: Select,
    /// The weights of those kept.
    pub weight: Weight,
    /// Wg_1 `[hs, D]`: the shared experts weigh hs · softmax(Wg_1·x), as in MoH; absent: 1 each. Behind [`Net::Mlp`] this
    /// and Wg_0 have its hidden layer for x.
    pub shared_weight: Option<Vec<f64>>,
    /// Wg_0 `[2, D]`: α = 2 · softmax(Wg_0·x) multiplies the shared and the routed weights, as in MoH (two
    /// stages); absent: 1.
    pub two_stage: Option<Vec<f64>>,
}

/// What scores the routed experts, R = E − hs of them.
#[derive(Clone, Debug)]
pub enum Net {
    /// z = 0: nothing tells the experts apart.
    None,
    /// z = W·x + b.
    Linear {
        /// W `[R, D]`.
        weight: Vec<f64>,
        /// b `[R]`; absent: 0.
        bias: Option<Vec<f64>>,
    },
    /// z = W_2 · f(W_1·x + b_1) + b_2.
    Mlp {
        /// W_1 `[hidden, D]`.
        input: Vec<f64>,
        /// b_1 `[hidden]`; absent: 0.
        input_bias: Option<Vec<f64>>,
        /// f: the exact GELU in MoLM, tanh in SUT.
        activation: Activation,
        /// W_2 `[R, hidden]`.
        output: Vec<f64>,
        /// b_2 `[R]`; absent: 0.
        output_bias: Option<Vec<f64>>,
    },
    /// z_e = exp(τ) · cos(W·x, c_e), as ModuleFormer's third kind of gate.
    Cosine {
        /// W `[hidden, D]`.
        input: Vec<f64>,
        /// c `[R, hidden]`.
        centroids: Vec<f64>,
        /// τ.
        temperature: f64,
    },
    /// z_e = ‖q_e‖₂ of the token's query for expert e before positions, as MoH-LLaMA3.
    QueryNorm,
}

/// Which experts of a group a token keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The k of highest score, highest first; equal scores: the lower expert first.
    TopK(usize),
    /// All, in their order.
    All,
}

/// The weights of the kept experts S of a group with scores z, where p = softmax(z) over the whole group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// softmax over the kept scores alone (JetMoE).
    SoftmaxKept,
    /// p_e (MoA's code, MoLM, BAM).
    SoftmaxAll,
    /// scale · p_e / (Σ_S p + ε): MoA's paper and SUT with scale 1; MoH with scale k and ε 0 (its code takes
    /// the larger of the sum and the type's ε instead, but the k largest of p never sum to so little).
    Renormalised {
        /// ε.
        epsilon: f64,
        /// By which the whole is multiplied.
        scale: f64,
    },
    /// sigmoid(z_e) (SwitchHead).
    Sigmoid,
    /// The same for each, whatever its score: 1 is MoH-LLaMA3's mask.
    Const(f64),
}

/// What a router decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// z `[tokens, E − hs]`.
    pub scores: Vec<f64>,
    /// The experts of each token: the shared ones, then those kept, group by group.
    pub routes: Routes,
}

impl Router {
    /// Routed experts in one group.
    pub fn group_size(&self) -> usize {
        let routed = self.experts - self.shared;
        assert_eq!(routed % self.groups, 0, "{routed} routed experts in {} groups", self.groups);
        routed / self.groups
    }

    /// Experts a token keeps.
    pub fn slots(&self) -> usize {
        let kept = match self.select {
            Select::TopK(k) => k,
            Select::All => self.group_size(),
        };
        self.shared + self.groups * kept
    }

    /// The decision for each token of x `[tokens, width]`. `query_norm(t, e)` is asked only by
    /// [`Net::QueryNorm`].
    pub fn route(&self, x: &[f64], width: usize, query_norm: impl Fn(usize, usize) -> f64) -> Routing {
        let mut routing =
            Routing { scores: Vec::new(), routes: Routes { top_k: self.slots(), ..Routes::default() } };
        for (token, x) in x.chunks_exact(width).enumerate() {
            let scores = self.scores(x, |e| query_norm(token, e));
            let features = self.features(x);
            let (alpha_shared, alpha_routed) = self.stages(&features);

            let mut experts: Vec<usize> = (0..self.shared).collect();
            let mut gates: Vec<f64> =
                self.shared_weights(&features).iter().map(|g| alpha_shared * g).collect();
            let mut margin = f64::INFINITY;
            if self.group_size() > 0 {
                for (group, scores) in scores.chunks_exact(self.group_size()).enumerate() {
                    let (kept, group_margin) = self.select.of(scores);
                    let first = self.shared + group * self.group_size();
                    gates.extend(self.weight.of(scores, &kept).iter().map(|g| alpha_routed * g));
                    experts.extend(kept.iter().map(|e| first + e));
                    margin = margin.min(group_margin);
                }
            }
            routing.scores.extend(scores);
            routing.routes.experts.extend(experts.iter().map(|&e| e as u32));
            routing.routes.gates.extend(gates);
            routing.routes.margins.push(margin);
        }
        routing
    }

    /// What the last layer of the net is given.
    fn features(&self, x: &[f64]) -> Vec<f64> {
        match &self.net {
            Net::Mlp { input, input_bias, activation, .. } => {
                activation.apply(&affine(input, input_bias.as_deref(), x))
            }
            Net::None | Net::Linear { .. } | Net::Cosine { .. } | Net::QueryNorm => x.to_vec(),
        }
    }

    /// z `[E − hs]`.
    fn scores(&self, x: &[f64], query_norm: impl Fn(usize) -> f64) -> Vec<f64> {
        let routed = self.shared..self.experts;
        let scores = match &self.net {
            Net::None => vec![0.0; routed.len()],
            Net::Linear { weight, bias } => affine(weight, bias.as_deref(), x),
            Net::Mlp { output, output_bias, .. } => affine(output, output_bias.as_deref(), &self.features(x)),
            Net::Cosine { input, centroids, temperature } => {
                let hidden = matvec(input, x);
                let cosine = |c: &[f64]| dot(&hidden, c) / (norm(&hidden) * norm(c));
                centroids.chunks_exact(hidden.len()).map(|c| temperature.exp() * cosine(c)).collect()
            }
            Net::QueryNorm => routed.clone().map(query_norm).collect(),
        };
        assert_eq!(scores.len(), routed.len(), "scores of {} routed experts", routed.len());
        scores
    }

    /// [hs].
    fn shared_weights(&self, x: &[f64]) -> Vec<f64> {
        match &self.shared_weight {
            Some(weight) => softmax(&matvec(weight, x)).iter().map(|p| self.shared as f64 * p).collect(),
            None => vec![1.0; self.shared],
        }
    }

    /// (α_0, α_1).
    fn stages(&self, x: &[f64]) -> (f64, f64) {
        match &self.two_stage {
            Some(weight) => {
                let p = softmax(&matvec(weight, x));
                (2.0 * p[0], 2.0 * p[1])
            }
            None => (1.0, 1.0),
        }
    }
}

impl Select {
    /// The kept experts of a group, and lowest kept score − best dropped score, infinite when nothing is
    /// dropped.
    pub fn of(self, scores: &[f64]) -> (Vec<usize>, f64) {
        let Select::TopK(k) = self else { return ((0..scores.len()).collect(), f64::INFINITY) };
        assert!((1..=scores.len()).contains(&k), "top {k} of {}", scores.len());
        let mut ranking: Vec<usize> = (0..scores.len()).collect();
        // A stable sort, so equal scores stay in the order of their experts.
        ranking.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("scores are numbers"));
        let margin =
            ranking.get(k).map_or(f64::INFINITY, |&dropped| scores[ranking[k - 1]] - scores[dropped]);
        ranking.truncate(k);
        (ranking, margin)
    }
}

impl Weight {
    /// The weight of each kept expert of a group.
    pub fn of(self, scores: &[f64], kept: &[usize]) -> Vec<f64> {
        let of_kept = |values: &[f64]| -> Vec<f64> { kept.iter().map(|&e| values[e]).collect() };
        match self {
            Weight::SoftmaxKept => softmax(&of_kept(scores)),
            Weight::SoftmaxAll => of_kept(&softmax(scores)),
            Weight::Renormalised { epsilon, scale } => {
                let p = of_kept(&softmax(scores));
                let sum: f64 = p.iter().sum();
                p.iter().map(|p| scale * p / (sum + epsilon)).collect()
            }
            Weight::Sigmoid => of_kept(scores).into_iter().map(sigmoid).collect(),
            Weight::Const(value) => vec![value; kept.len()],
        }
    }
}

/// ‖x‖₂.
pub fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// W·x + b.
pub fn affine(weight: &[f64], bias: Option<&[f64]>, x: &[f64]) -> Vec<f64> {
    assert_eq!(weight.len() % x.len(), 0, "affine: weight");
    let mut y = matvec(weight, x);
    if let Some(bias) = bias {
        assert_eq!(y.len(), bias.len(), "affine: bias");
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    y
}
