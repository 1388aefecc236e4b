//! What stands around the attention in a block: norms and MLPs.

use super::{
    activations::Activation,
    layer_norm::layer_norm,
    norm_router::Routes,
    rms_norm::rms_norm,
    routed_linear::{RoutedLinear, routed_linear},
    router::{Net, Router, Select, Weight, affine},
};

/// A norm of rows as wide as its weight.
#[derive(Clone, Debug)]
pub enum Norm {
    /// [`layer_norm`].
    Layer {
        /// `[D]`.
        weight: Vec<f64>,
        /// `[D]`.
        bias: Vec<f64>,
        /// ε.
        epsilon: f64,
    },
    /// [`rms_norm`].
    Rms {
        /// `[D]`.
        weight: Vec<f64>,
        /// ε.
        epsilon: f64,
    },
}

impl Norm {
    /// The norm of each row of x.
    pub fn of(&self, x: &[f64]) -> Vec<f64> {
        match self {
            Norm::Layer { weight, bias, epsilon } => layer_norm(x, weight, bias, *epsilon),
            Norm::Rms { weight, epsilon } => rms_norm(x, weight, *epsilon),
        }
    }
}

/// A dense MLP with biases.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// f.
    pub activation: Activation,
    /// W_1 `[F, D]`.
    pub input: Vec<f64>,
    /// b_1 `[F]`.
    pub input_bias: Vec<f64>,
    /// W_2 `[D, F]`.
    pub output: Vec<f64>,
    /// b_2 `[D]`.
    pub output_bias: Vec<f64>,
}

impl Mlp {
    /// W_2 · f(W_1·x + b_1) + b_2 for each row of x.
    pub fn of(&self, x: &[f64]) -> Vec<f64> {
        let hidden = self.activation.apply(&affine_rows(&self.input, &self.input_bias, x));
        affine_rows(&self.output, &self.output_bias, &hidden)
    }
}

/// A mixture of gated MLPs.
#[derive(Clone, Debug)]
pub struct ExpertMlp {
    /// Which of them a token takes.
    pub router: Router,
    /// W_gate over W_up of each, `[E, 2F, D]`.
    pub gate_up: Vec<f64>,
    /// W_down `[E, D, F]`.
    pub down: Vec<f64>,
}

impl ExpertMlp {
    /// Σ_s g_s · W_down\[e_s\] · (silu(W_gate\[e_s\]·x) ⊙ W_up\[e_s\]·x) for each row of x `[tokens, D]`.
    pub fn of(&self, x: &[f64], width: usize) -> (Vec<f64>, Routes) {
        let inner = self.down.len() / (self.router.experts * width);
        let routes = self.router.route(x, width, |_, _| panic!("an MLP has no queries")).routes;
        let input = RoutedLinear {
            weight: &self.gate_up,
            out_rows: 2 * inner,
            in_width: width,
            experts: &routes.experts,
            gates: None,
            slots: 1,
            src: x,
            src_div: routes.top_k,
            bias: None,
            residual: None,
            swiglu: true,
        };
        let hidden = routed_linear(&input);
        let y = routed_linear(&RoutedLinear {
            weight: &self.down,
            out_rows: width,
            in_width: inner,
            gates: Some(&routes.gates),
            slots: routes.top_k,
            src: &hidden,
            src_div: 1,
            swiglu: false,
            ..input
        });
        (y, routes)
    }
}

/// W·x + b for each row of x; W is `[b.len(), width of a row]`.
pub fn affine_rows(weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
    let width = weight.len() / bias.len();
    assert_eq!((weight.len() % bias.len(), x.len() % width), (0, 0), "affine_rows: shapes");
    x.chunks_exact(width).flat_map(|x| affine(weight, Some(bias), x)).collect()
}

/// A router without bias over one group: z = W·x, W `[experts, D]`.
pub fn linear_router(weight: Vec<f64>, experts: usize, select: Select, rule: Weight) -> Router {
    Router {
        experts,
        shared: 0,
        groups: 1,
        net: Net::Linear { weight, bias: None },
        select,
        weight: rule,
        shared_weight: None,
        two_stage: None,
    }
}

/// A router that keeps all heads with gate 1: ordinary attention.
pub fn all_on(heads: usize) -> Router {
    Router {
        experts: heads,
        shared: heads,
        groups: 1,
        net: Net::None,
        select: Select::All,
        weight: Weight::Const(1.0),
        shared_weight: None,
        two_stage: None,
    }
}
