//! The attention layer whose heads are experts: one formula for MoA (Zhang et al. 2022, arXiv 2210.05144),
//! JetMoE (Shen et al. 2024, arXiv 2404.07413), ModuleFormer (Shen et al. 2023, arXiv 2306.04640), SUT (Tan
//! et al. 2023, arXiv 2310.07096), MoH (Jin et al. 2024, arXiv 2410.11842), SwitchHead (Csordás et al. 2023,
//! arXiv 2312.07987), BAM (Zhang et al. 2024, arXiv 2408.08274), and ordinary attention.
//!
//! An expert is m heads of d channels. With x' the tokens the keys come from (x itself, or an encoder's
//! output):
//!
//! ```text
//! e(t,·), g(t,·) = router(x_t)
//! q(t,s,j) = R_t (Wq[e(t,s)]_j · x_t)
//! K_c, V_c = R (Wk_c · x'), Wv_c · x'
//! o(t,s,j) = Σ_i A_i V_c(i),  A = kernel_i(d^(−1/2) · q(t,s,j)·K_c(i)),  c = ((e·m + j) / group) mod kv_heads
//! y_t      = b + Σ_s g(t,s) · Wo[e(t,s)] · o(t,s,·)
//! ```
//!
//! Only the query token is routed, so unselected experts are neither projected, attended nor combined.
//!
//! | | `experts` × `heads` | `kv_heads` | `group` | `query_share` |
//! |---|---|---|---|---|
//! | multi-head attention with H heads, MoH-ViT, MoH-DiT | H × 1 | H | 1 | 1 |
//! | grouped queries, MoH-LLaMA3 | H × 1 | C | H/C | 1 |
//! | MoA | E × 1 | 1 | 1 | 1 |
//! | JetMoE, MoLM, SUT | E × m | m | 1 | 1 |
//! | BAM of N modules with H heads on C, keys and values of each | N × H | N·C | H/C | 1 |
//! | the same, shared keys and values | N × H | C | H/C | 1 |
//! | SwitchHead, H heads with E output experts each | H·E × 1 | H | E | E |

use super::{
    activations::{log_sigmoid, sigmoid},
    dot, matvec,
    norm_router::Routes,
    rope_cache::rope,
    router::{Router, Routing, affine, norm},
    softmax,
};

/// A layer: its shape, its choices, its tensors. Matrices are `[out, in]`, stacks of them `[experts, out,
/// in]`.
#[derive(Clone, Debug)]
pub struct HeadMixture {
    /// Width of the input and the output, D.
    pub width: usize,
    /// Heads of an expert, m.
    pub heads: usize,
    /// Channels of a head, d.
    pub head_dim: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Neighbouring query heads that share a KV head; once all are taken the next query head begins again at
    /// KV head 0.
    pub group: usize,
    /// Neighbouring experts that share a query.
    pub query_share: usize,
    /// The experts E of each token, and their gates.
    pub router: Router,
    /// Wq `[E / query_share, m·d, D]`.
    pub query: Vec<f64>,
    /// `[E / query_share, m·d]`; absent: 0.
    pub query_bias: Option<Vec<f64>>,
    /// Where keys and values come from.
    pub kv: KeysValues,
    /// How a score learns of distance.
    pub positions: Positions,
    /// How scores become weights.
    pub kernel: Kernel,
    /// Whether a token sees only the keys up to its own place.
    pub causal: bool,
    /// Whether the gates of padded query tokens are 0 (MoA), so that such a row of y is the bias alone.
    /// Otherwise they are computed like any token.
    pub padding_gates_zero: bool,
    /// Wo `[E, D, m·d]`.
    pub output: Vec<f64>,
    /// `[D]`, added once and never gated; absent: 0.
    pub output_bias: Option<Vec<f64>>,
}

/// Keys and values `[S, C, d]` of the source tokens x' `[S, D]`, C = `kv_heads`.
#[derive(Clone, Debug)]
pub enum KeysValues {
    /// K = Wk·x' + bk, V = Wv·x' + bv.
    Projected {
        /// Wk `[C·d, D]`.
        keys: Vec<f64>,
        /// bk `[C·d]`; absent: 0.
        key_bias: Option<Vec<f64>>,
        /// Wv `[C·d, D]`.
        values: Vec<f64>,
        /// bv `[C·d]`; absent: 0.
        value_bias: Option<Vec<f64>>,
    },
    /// K = V = x', with C = 1 and d = D (MoLM).
    Identity,
    /// K = Wk·x', V_c = Σ_{e kept of group c} g_e · Wv\[e\] · x' (SwitchHead).
    MixedValues {
        /// Wk `[C·d, D]`.
        keys: Vec<f64>,
        /// Routes the source tokens in C groups.
        router: Router,
        /// Wv `[experts of that router, d, D]`.
        values: Vec<f64>,
    },
}

/// How a score learns of the distance between query and key.
#[derive(Clone, Debug)]
pub enum Positions {
    /// Not at all, or through the input.
    None,
    /// Rotation of the first `fraction`·d channels of queries and keys, halves of that part paired.
    Rope {
        /// θ.
        theta: f64,
        /// Of the channels.
        fraction: f64,
    },
    /// d^(−1/2) · q(t,s,j)·r_j(i − t) is added to the score of key i, with r_j(δ) the row
    /// `entries`/2 + clamp(δ, ±clip) of head j's table (SUT: 129 entries, clip 63).
    Relative {
        /// Largest distance told apart.
        clip: usize,
        /// Rows of a head's table; odd.
        entries: usize,
        /// r `[m, entries, d]`.
        table: Vec<f64>,
    },
}

/// How the scores z of the keys a query may see become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// e^z_i / Σ e^z.
    Softmax,
    /// [`stick_breaking`].
    StickBreaking,
}

/// What a layer is given. Sequences of a batch have equal length; shorter ones are padded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    /// Sequences, B.
    pub batch: usize,
    /// `[B, T, D]`.
    pub x: &'a [f64],
    /// `[B, S, D]`, the source of keys and values; absent: x.
    pub memory: Option<&'a [f64]>,
    /// `[B, T]`, true where x is padding; absent: nowhere. Without memory, no token sees those keys.
    pub padding: Option<&'a [bool]>,
    /// `[B, S]`, the same for the memory.
    pub memory_padding: Option<&'a [bool]>,
}

/// What a layer returns.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, T, D]`.
    pub y: Vec<f64>,
    /// Router scores, and the experts of each token. Where `padding_gates_zero` sets gates to 0, the margin
    /// is 0 too: any expert is as good as another.
    pub routing: Routing,
    /// The value experts of each source token, with [`KeysValues::MixedValues`].
    pub value_routing: Option<Routing>,
}

impl HeadMixture {
    /// y and the routes it took.
    pub fn forward(&self, input: &Input) -> Output {
        let (d, m) = (self.head_dim, self.heads);
        self.check(input);
        let source = input.memory.unwrap_or(input.x);
        let source_padding = if input.memory.is_some() { input.memory_padding } else { input.padding };
        let tokens = input.x.len() / self.width / input.batch; // of one sequence
        let sources = source.len() / self.width / input.batch;

        let x = |row: usize| &input.x[row * self.width..][..self.width];
        let query_norm = |row: usize, expert: usize| norm(&self.expert_query(expert, x(row)));
        let mut routing = self.router.route(input.x, self.width, query_norm);
        if self.padding_gates_zero {
            drop_padding(&mut routing.routes, input.padding.unwrap_or(&[]));
        }
        let (keys, values, value_routing) = self.keys_values(source, sources);

        let mut y = Vec::with_capacity(input.x.len());
        for row in 0..input.batch * tokens {
            let (sequence, token) = (row / tokens, row % tokens);
            let is_padding = |i: usize| source_padding.is_some_and(|p| p[sequence * sources + i]);
            let sees = |i: &usize| (!self.causal || *i <= token) && !is_padding(*i);
            let visible: Vec<usize> = (0..sources).filter(sees).collect();

            let mut sum = self.output_bias.clone().unwrap_or(vec![0.0; self.width]);
            for slot in row * self.router.slots()..(row + 1) * self.router.slots() {
                let (expert, gate) = (routing.routes.experts[slot] as usize, routing.routes.gates[slot]);
                let query = self.expert_query(expert, x(row));
                let heads = query.chunks_exact(d).enumerate().flat_map(|(j, q)| {
                    let kv_head = (expert * m + j) / self.group % self.kv_heads;
                    let place = |i: usize| ((sequence * sources + i) * self.kv_heads + kv_head) * d;
                    self.attend(
                        q,
                        j,
                        token,
                        &visible,
                        |i| &keys[place(i)..][..d],
                        |i| &values[place(i)..][..d],
                    )
                });
                let matrix = &self.output[expert * self.width * m * d..][..self.width * m * d];
                let out = matvec(matrix, &heads.collect::<Vec<f64>>());
                sum.iter_mut().zip(out).for_each(|(sum, out)| *sum += gate * out);
            }
            y.extend(sum);
        }
        Output { y, routing, value_routing }
    }

    /// o = Σ_i A_i V(i) over the visible keys, A = kernel_i(d^(−1/2) · (R_t q·K(i) + q·r_j(i − t))) `[d]`.
    fn attend<'a>(
        &self,
        q: &[f64],
        j: usize,
        token: usize,
        visible: &[usize],
        key: impl Fn(usize) -> &'a [f64],
        value: impl Fn(usize) -> &'a [f64],
    ) -> Vec<f64> {
        let mut rotated = q.to_vec();
        self.rotate(&mut rotated, token);
        let score = |&i: &usize| {
            let product = dot(&rotated, key(i)) + dot(q, &self.relative(j, i as i64 - token as i64));
            product / (q.len() as f64).sqrt()
        };
        let weights = self.kernel.weights(&visible.iter().map(score).collect::<Vec<f64>>());
        let channel = |c| visible.iter().zip(&weights).map(|(&i, a)| a * value(i)[c]).sum();
        (0..q.len()).map(channel).collect()
    }

    /// Wq\[e\]·x + bq\[e\] `[m·d]`, before positions.
    fn expert_query(&self, expert: usize, x: &[f64]) -> Vec<f64> {
        let (query, rows) = (expert / self.query_share, self.heads * self.head_dim);
        let bias = self.query_bias.as_ref().map(|bias| &bias[query * rows..][..rows]);
        affine(&self.query[query * rows * self.width..][..rows * self.width], bias, x)
    }

    /// K with positions and V, each `[B·S, kv_heads, d]`.
    fn keys_values(&self, source: &[f64], sources: usize) -> (Vec<f64>, Vec<f64>, Option<Routing>) {
        let rows = source.chunks_exact(self.width);
        let project = |weight: &[f64], bias: &Option<Vec<f64>>| -> Vec<f64> {
            assert_eq!(weight.len(), self.kv_heads * self.head_dim * self.width, "keys or values");
            rows.clone().flat_map(|x| affine(weight, bias.as_deref(), x)).collect()
        };
        let (mut k, v, routing) = match &self.kv {
            KeysValues::Projected { keys, key_bias, values, value_bias } => {
                (project(keys, key_bias), project(values, value_bias), None)
            }
            KeysValues::Identity => {
                assert_eq!((self.kv_heads, self.head_dim), (1, self.width), "identity keys and values");
                (source.to_vec(), source.to_vec(), None)
            }
            KeysValues::MixedValues { keys, router, values } => {
                let (v, routing) = self.mixed_values(router, values, source);
                (project(keys, &None), v, Some(routing))
            }
        };
        for (place, head) in k.chunks_exact_mut(self.head_dim).enumerate() {
            self.rotate(head, place / self.kv_heads % sources);
        }
        (k, v, routing)
    }

    /// V_c = Σ_{e kept of group c} g_e · Wv\[e\] · x'.
    fn mixed_values(&self, router: &Router, weight: &[f64], source: &[f64]) -> (Vec<f64>, Routing) {
        let (d, slots) = (self.head_dim, router.slots());
        assert_eq!((router.groups, router.shared), (self.kv_heads, 0), "value experts of each head");
        assert_eq!(weight.len(), router.experts * d * self.width, "value experts");
        let routing = router.route(source, self.width, |_, _| panic!("keys have no queries"));
        let mut values = vec![0.0; source.len() / self.width * self.kv_heads * d];
        for (a, (&expert, gate)) in routing.routes.experts.iter().zip(&routing.routes.gates).enumerate() {
            let (token, expert) = (a / slots, expert as usize);
            let head = token * self.kv_heads + expert / router.group_size();
            let x = &source[token * self.width..][..self.width];
            let value = matvec(&weight[expert * d * self.width..][..d * self.width], x);
            values[head * d..][..d].iter_mut().zip(value).for_each(|(sum, v)| *sum += gate * v);
        }
        (values, routing)
    }

    /// Rotary positions, where the layer has them.
    fn rotate(&self, head: &mut [f64], position: usize) {
        if let Positions::Rope { theta, fraction } = self.positions {
            let part = (fraction * head.len() as f64).round() as usize;
            assert_eq!(part % 2, 0, "rope turns pairs of channels");
            rope(&mut head[..part], position as u32, theta);
        }
    }

    /// r_j(δ) `[d]`; zero without learned relative positions.
    fn relative(&self, head: usize, distance: i64) -> Vec<f64> {
        let Positions::Relative { clip, entries, table } = &self.positions else {
            return vec![0.0; self.head_dim];
        };
        let entry = (entries / 2) as i64 + distance.clamp(-(*clip as i64), *clip as i64);
        table[(head * entries + entry as usize) * self.head_dim..][..self.head_dim].to_vec()
    }

    /// Panics unless every tensor has the size the shape says.
    fn check(&self, input: &Input) {
        let (experts, rows) = (self.router.experts, self.heads * self.head_dim);
        let queries = experts / self.query_share;
        assert_eq!(experts % self.query_share, 0, "query share");
        assert_eq!(self.query.len(), queries * rows * self.width, "query");
        assert_eq!(self.output.len(), experts * self.width * rows, "output");
        assert!(self.query_bias.as_ref().is_none_or(|bias| bias.len() == queries * rows), "query bias");
        assert!(self.output_bias.as_ref().is_none_or(|bias| bias.len() == self.width), "output bias");
        assert_eq!(input.x.len() % (input.batch * self.width), 0, "x");
        let tokens = input.x.len() / self.width;
        assert!(input.padding.is_none_or(|padding| padding.len() == tokens), "padding");
        if let Some(memory) = input.memory {
            assert_eq!(memory.len() % (input.batch * self.width), 0, "memory");
            let sources = memory.len() / self.width;
            assert!(input.memory_padding.is_none_or(|padding| padding.len() == sources), "memory padding");
            assert!(!self.causal, "a memory has no future");
            assert!(matches!(self.positions, Positions::None), "no distance between a token and a memory");
        }
        if let Positions::Relative { entries, table, clip } = &self.positions {
            assert_eq!(table.len(), self.heads * entries * self.head_dim, "relative positions");
            assert!(*clip <= entries / 2 && entries % 2 == 1, "clip");
        }
    }
}

impl Kernel {
    /// The weights of keys with scores z, oldest first. No keys, no weights: such a head returns 0.
    pub fn weights(self, z: &[f64]) -> Vec<f64> {
        match self {
            Kernel::Softmax => softmax(z),
            Kernel::StickBreaking => stick_breaking(z),
        }
    }
}

/// A_i = β_i · Π_{l>i} (1 − β_l) = sigmoid(z_i) · exp(Σ_{l>i} ln sigmoid(−z_l)), β = sigmoid(z): each key
/// breaks its share off what the newer ones left of a stick of length 1 (ModuleFormer, arXiv 2306.04640).
pub fn stick_breaking(z: &[f64]) -> Vec<f64> {
    let mut weights = vec![0.0; z.len()];
    let mut log_remainder = 0.0;
    for (weight, z) in weights.iter_mut().zip(z).rev() {
        *weight = sigmoid(*z) * f64::exp(log_remainder);
        log_remainder += log_sigmoid(-z);
    }
    weights
}

/// Gates 0 and margin 0 for padded tokens.
fn drop_padding(routes: &mut Routes, padding: &[bool]) {
    for token in (0..padding.len()).filter(|&token| padding[token]) {
        routes.gates[token * routes.top_k..][..routes.top_k].fill(0.0);
        routes.margins[token] = 0.0;
    }
}

/// `[E, out, in]` from the input-major `[E, in, out]`.
pub fn transpose_each(weight: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let transposed = |matrix: &[f64]| -> Vec<f64> {
        (0..inputs * outputs).map(|place| matrix[place % inputs * outputs + place / inputs]).collect()
    };
    weight.chunks_exact(inputs * outputs).flat_map(transposed).collect()
}

/// `[E, rows, columns/E]` from one matrix `[rows, columns]`: the slice of a dense output projection that
/// belongs to each head.
pub fn split_columns(weight: &[f64], columns: usize, experts: usize) -> Vec<f64> {
    let part = columns / experts;
    let of_expert = |e: usize| weight.chunks_exact(columns).flat_map(move |row| &row[e * part..][..part]);
    (0..experts).flat_map(of_expert).copied().collect()
}
