//! Random head mixtures, over everything their specification can say, and what to run through them.

use headwise::internal::{
    Activation, AttentionKernel, ExpertChoice, HeadMixtureSpec, KernelChoice, KvProjection, NormKind,
    NormSpec, PositionEncoding, Precision, RouterNet, RouterSpec, Weighting,
};
use proptest::prelude::*;

use crate::support::{CHOICES, precision, size};

/// A layer and its use.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub spec: HeadMixtureSpec,
    pub use_: Use,
}

/// On what a layer runs, and what it is given.
#[derive(Clone, Debug)]
pub struct Use {
    pub kernels: KernelChoice,
    pub precision: Precision,
    /// Output rows in a part of a matrix.
    pub part_rows: u32,
    /// The tokens of each sequence in each step.
    pub steps: Vec<Vec<u32>>,
    /// Positions that are never filled.
    pub spare_capacity: u32,
    /// Experts that routers before this one chose for each token.
    pub routes_before: u32,
    pub seed: u64,
}

pub fn any_drawn() -> impl Strategy<Value = Drawn> {
    (any_spec(), any_use()).prop_map(|(spec, use_)| Drawn { spec, use_ })
}

fn any_use() -> impl Strategy<Value = Use> {
    let kernels = prop::sample::select(CHOICES.to_vec());
    let part_rows = prop_oneof![2 => Just(1 << 16), 1 => (1..=6u32).prop_map(|eights| 8 * eights)];
    (kernels, precision(), part_rows, any_steps(), 0..=3u32, 0..=3u32, any::<u64>()).prop_map(
        |(kernels, precision, part_rows, steps, spare_capacity, routes_before, seed)| Use {
            kernels,
            precision,
            part_rows,
            steps,
            spare_capacity,
            routes_before,
            seed,
        },
    )
}

/// A prompt of one sequence or of several, then more tokens, mostly one at a time.
fn any_steps() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let few = prop::sample::select(vec![vec![1], vec![4], vec![1, 3], vec![2, 1, 1], vec![1; 4]]);
    let many = prop::collection::vec(1..=24u32, 1..=3).prop_map(|mut counts| {
        counts[0] += 4;
        counts
    });
    // Beyond what one split of the decode kernel reads.
    let long = (254..=258u32).prop_map(|count| vec![count]);
    let prompt = prop_oneof![4 => few, 6 => many, 1 => Just(vec![1; 6]), 1 => long];
    prompt.prop_flat_map(|prompt| {
        let sequences = prompt.len();
        let later = prop_oneof![
            4 => Just(vec![1; sequences]),
            1 => prop::collection::vec(0..=1u32, sequences),
            1 => prop::collection::vec(0..=7u32, sequences),
        ];
        prop::collection::vec(later, 0..=4).prop_map(move |later| {
            let later = later.into_iter().filter(|counts| counts.iter().sum::<u32>() > 0);
            std::iter::once(prompt.clone()).chain(later).collect()
        })
    })
}

pub fn any_weighting() -> impl Strategy<Value = Weighting> {
    prop_oneof![
        Just(Weighting::SoftmaxTopK),
        Just(Weighting::SoftmaxAll),
        prop::sample::select(vec![1e-6, 0.1]).prop_map(|eps| Weighting::SoftmaxAllRenormalised { eps }),
        Just(Weighting::Sigmoid),
        Just(Weighting::Binary),
    ]
}

fn any_router() -> impl Strategy<Value = RouterSpec> {
    let activation = prop::sample::select(vec![Activation::Gelu, Activation::GeluTanh, Activation::Tanh]);
    let net = prop_oneof![
        2 => Just(RouterNet::Linear),
        2 => (4..=24u32, activation).prop_map(|(hidden, activation)| RouterNet::Mlp { hidden, activation }),
        2 => Just(RouterNet::QueryNorm),
    ];
    let choice = (1..=9u32).prop_flat_map(|experts| {
        let shared = prop_oneof![Just(0), 0..experts];
        let counts = shared.prop_flat_map(move |shared| (Just(shared), 1..=experts - shared));
        (counts, any_weighting()).prop_map(move |((shared, top_k), weighting)| ExpertChoice {
            experts,
            shared,
            top_k,
            weighting,
        })
    });
    (net, choice).prop_map(|(net, choice)| RouterSpec { net, choice })
}

/// How query heads share key/value heads.
#[derive(Clone, Copy, Debug)]
enum KvHeads {
    /// Head j of every expert reads key/value head j.
    Tiled,
    /// All heads read the same one.
    One,
    /// Each head of each expert has its own.
    OnePerHead,
    /// Any other way that comes out even.
    Even(prop::sample::Index),
}

impl KvHeads {
    /// Key/value heads, and consecutive query heads that share one.
    fn of(self, experts: u32, heads_per_expert: u32) -> (u32, u32) {
        let heads = experts * heads_per_expert;
        match self {
            Self::Tiled => (heads_per_expert, 1),
            Self::One => (1, heads),
            Self::OnePerHead => (heads, 1),
            Self::Even(index) => {
                let pairs = (1..=heads).flat_map(|kv_heads| (1..=heads).map(move |group| (kv_heads, group)));
                let even: Vec<_> =
                    pairs.filter(|(kv_heads, group)| heads.is_multiple_of(kv_heads * group)).collect();
                even[index.index(even.len())]
            }
        }
    }
}

fn any_spec() -> impl Strategy<Value = HeadMixtureSpec> {
    let router = prop_oneof![1 => Just(None), 7 => any_router().prop_map(Some)];
    let kv_heads = prop_oneof![
        Just(KvHeads::Tiled),
        Just(KvHeads::One),
        Just(KvHeads::OnePerHead),
        any::<prop::sample::Index>().prop_map(KvHeads::Even)
    ];
    let heads =
        (1..=4u32, kv_heads, prop_oneof![2 => (1..=10u32).prop_map(|quads| 4 * quads), 1 => size(40)]);
    let kv = prop_oneof![
        Just(KvProjection::Projected { bias: false }),
        Just(KvProjection::Projected { bias: true }),
        Just(KvProjection::Identity)
    ];
    let position = prop_oneof![
        2 => prop::sample::select(vec![1e2, 1e4]).prop_map(|theta| PositionEncoding::Rope { theta }),
        1 => Just(PositionEncoding::None)
    ];
    let kernel = prop_oneof![Just(AttentionKernel::Softmax), Just(AttentionKernel::StickBreaking)];
    let norm = (any::<bool>(), 4..=48u32, prop_oneof![Just(1e-6f32), Just(1e-5)]);
    (router, heads, kv, position, kernel, norm, any::<bool>()).prop_map(
        |(router, (heads_per_expert, kv_heads, head_dim), kv, position, kernel, norm, output_bias)| {
            let (layer_norm, width, eps) = norm;
            let net = router.map(|router| router.net);
            let experts = router.map_or(1, |router| router.experts());
            let heads_per_expert = if net == Some(RouterNet::QueryNorm) { 1 } else { heads_per_expert };
            let (kv_heads, group) = kv_heads.of(experts, heads_per_expert);

            // What does not go together.
            let kv_width = kv_heads * head_dim;
            let whole = kv_heads == 1 || head_dim.is_multiple_of(4);
            let kv = match kv {
                KvProjection::Identity if !whole || !(4..=128).contains(&kv_width) => {
                    KvProjection::Projected { bias: false }
                }
                kv => kv,
            };
            let identity = kv == KvProjection::Identity;
            let rotates = head_dim.is_multiple_of(4) && !identity;
            let layer_norm = layer_norm && net != Some(RouterNet::Linear);
            HeadMixtureSpec {
                norm: NormSpec {
                    kind: if layer_norm { NormKind::Layer } else { NormKind::Rms },
                    width: if identity { kv_width } else { width },
                    eps,
                },
                router,
                heads_per_expert,
                kv_heads,
                group,
                head_dim,
                kv,
                position: if rotates { position } else { PositionEncoding::None },
                kernel,
                output_bias,
            }
        },
    )
}
