//! Random head mixtures, over everything their specification can say, and what to run through them.

use headwise::internal::{
    Activation, AttentionKernel, ExpertChoice, HeadMixtureSpec, KernelChoice, KvProjection, NormKind,
    NormPlacement, NormSpec, PositionEncoding, Precision, RouterNet, RouterSpec, Scope, Weighting,
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
    /// Parts that the cache's slots lie in.
    pub sections: u32,
    /// Experts that routers before this one chose for each token, and scores they left.
    pub routes_before: u32,
    pub scores_before: u32,
    /// Whether a token sees only the tokens up to itself; otherwise there is one step.
    pub causal: bool,
    /// Tokens of each memory, where keys and values come from one.
    pub memory: Vec<u32>,
    pub biases: Biases,
    pub seed: u64,
}

/// Which biases a layer has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Biases {
    pub query: bool,
    pub kv: bool,
    pub output: OutputBiased,
    /// On the scores of the routers.
    pub router: bool,
    /// On the hidden layer of the router.
    pub hidden: bool,
}

/// What is added to the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputBiased {
    #[default]
    None,
    Once,
    OfExpert,
}

pub fn any_drawn() -> impl Strategy<Value = Drawn> {
    (any_spec(), any_use()).prop_map(|(spec, mut use_)| {
        let choice = spec.router.choice;
        let whole = matches!(spec.router.scope, Scope::Sequence { .. });
        let mixed = matches!(spec.kv, KvProjection::MixedValues(_));
        if !use_.causal || whole {
            use_.steps.truncate(1);
        }
        // Only a cut has a bias for each expert.
        use_.biases.output = match use_.biases.output {
            OutputBiased::OfExpert if !whole => OutputBiased::Once,
            output => output,
        };
        // What the oracle has no bias for.
        use_.biases.kv &= !mixed && spec.kv != KvProjection::Identity;
        use_.biases.router &= !choice.shared_softmax && !choice.two_stage;
        Drawn { spec, use_ }
    })
}

fn any_use() -> impl Strategy<Value = Use> {
    let kernels = prop::sample::select(CHOICES.to_vec());
    let part_rows = prop_oneof![2 => Just(1 << 16), 1 => (1..=6u32).prop_map(|eights| 8 * eights)];
    let before = (0..=3u32, 0..=3u32);
    let memory = prop_oneof![3 => 1..=9u32, 2 => 1..=70u32, 1 => Just(0), 1 => 250..=260u32];
    let memory = prop::collection::vec(memory, 1..=3).prop_map(|mut lengths| {
        lengths[0] += 1;
        lengths
    });
    let causal = prop_oneof![4 => Just(true), 1 => Just(false)];
    (
        kernels,
        precision(),
        part_rows,
        any_steps(),
        0..=3u32,
        before,
        (causal, memory, any_biases()),
        any::<u64>(),
    )
        .prop_map(|(kernels, precision, part_rows, steps, spare_capacity, before, more, seed)| {
            let ((routes_before, scores_before), (causal, memory, biases)) = (before, more);
            Use {
                kernels,
                precision,
                part_rows,
                steps,
                spare_capacity,
                sections: if seed % 4 == 0 { 2 + (seed / 4 % 4) as u32 } else { 1 },
                routes_before,
                scores_before,
                causal,
                memory,
                biases,
                seed,
            }
        })
}

fn any_biases() -> impl Strategy<Value = Biases> {
    let output =
        prop_oneof![Just(OutputBiased::None), Just(OutputBiased::Once), Just(OutputBiased::OfExpert)];
    (any::<(bool, bool, bool, bool)>(), output).prop_map(|((query, kv, router, hidden), output)| Biases {
        query,
        kv,
        output,
        router,
        hidden,
    })
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
        Just(Weighting::Constant),
    ]
}

/// Choices of `top_k` from each of `groups` groups of `size` experts.
fn any_choice() -> impl Strategy<Value = ExpertChoice> {
    let groups = prop_oneof![3 => Just(1u32), 1 => 2..=3u32];
    let shared = prop_oneof![1 => Just(0u32), 1 => 1..=4u32];
    let scale = prop_oneof![2 => Just(1.0f32), 1 => Just(2.5)];
    (groups, 1..=8u32, any::<u32>(), shared, any_weighting(), scale, any::<(bool, bool)>()).prop_map(
        |(groups, size, top_k, shared, weighting, scale, (shared_softmax, two_stage))| {
            let size = if groups > 1 { size.min(4) } else { size };
            // The oracle cannot scale these.
            let fixed = matches!(weighting, Weighting::SoftmaxAll | Weighting::Sigmoid);
            ExpertChoice {
                experts: shared + groups * size,
                shared,
                groups,
                top_k: 1 + top_k % size,
                weighting,
                scale: if fixed { 1.0 } else { scale },
                shared_softmax: shared_softmax && shared > 0,
                two_stage: two_stage && shared > 0,
            }
        },
    )
}

fn any_router() -> impl Strategy<Value = RouterSpec> {
    let activation = prop::sample::select(vec![Activation::Gelu, Activation::GeluTanh, Activation::Tanh]);
    let net = prop_oneof![
        2 => Just(RouterNet::Linear),
        2 => (4..=24u32, activation).prop_map(|(hidden, activation)| RouterNet::Mlp { hidden, activation }),
        2 => (4..=24u32).prop_map(|hidden| RouterNet::Cosine { hidden }),
        2 => Just(RouterNet::QueryNorm),
    ];
    // One in eight has shared experts alone.
    (net, any_choice(), 0..8u32).prop_map(|(net, mut choice, all_shared)| {
        let scores_all = matches!(net, RouterNet::Linear | RouterNet::Mlp { .. });
        choice.shared_softmax &= scores_all;
        choice.two_stage &= scores_all;
        if all_shared == 0 && choice.shared_softmax {
            let ExpertChoice { shared, .. } = choice;
            choice = ExpertChoice { experts: shared, groups: 1, top_k: 0, two_stage: false, ..choice };
        }
        RouterSpec::new(net, choice)
    })
}

/// What a layer is at heart.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Anything that goes together.
    Any,
    /// Experts of a group share a query (SwitchHead).
    SharedQueries,
    /// Whole sequences are cut (UoE).
    Cut { causal: bool },
}

/// Where keys and values come from, before it is known whether that is possible.
#[derive(Clone, Copy, Debug)]
enum From {
    Projected,
    Identity,
    Memory,
    /// With that many experts for each head, of which so many are chosen.
    Mixed(u32, u32, Weighting),
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
    let kind = prop_oneof![
        7 => Just(Kind::Any),
        2 => Just(Kind::SharedQueries),
        2 => any::<bool>().prop_map(|causal| Kind::Cut { causal }),
    ];
    let router = prop_oneof![1 => Just(None), 7 => any_router().prop_map(Some)];
    let kv_heads = prop_oneof![
        Just(KvHeads::Tiled),
        Just(KvHeads::One),
        Just(KvHeads::OnePerHead),
        any::<prop::sample::Index>().prop_map(KvHeads::Even)
    ];
    let heads =
        (1..=4u32, kv_heads, prop_oneof![2 => (1..=10u32).prop_map(|quads| 4 * quads), 1 => size(40)]);
    let mixed = (1..=4u32, any::<u32>(), any_weighting());
    let kv = prop_oneof![
        3 => Just(From::Projected),
        2 => Just(From::Identity),
        2 => Just(From::Memory),
        2 => mixed.prop_map(|(size, top_k, weighting)| From::Mixed(size, 1 + top_k % size, weighting)),
    ];
    let theta = prop::sample::select(vec![1e2, 1e4]);
    let position = prop_oneof![
        3 => (theta, any::<u32>()).prop_map(|(theta, channels)| PositionEncoding::Rope { theta, channels }),
        2 => size(70).prop_map(|clip| PositionEncoding::Relative { clip }),
        2 => Just(PositionEncoding::None)
    ];
    let kernel = prop_oneof![Just(AttentionKernel::Softmax), Just(AttentionKernel::StickBreaking)];
    let placement = prop_oneof![
        3 => Just(NormPlacement::Before),
        1 => Just(NormPlacement::After),
        1 => Just(NormPlacement::Shared),
        1 => Just(NormPlacement::None),
    ];
    let norm = (any::<bool>(), 4..=48u32, prop_oneof![Just(1e-6f32), Just(1e-5)], placement);
    ((kind, router), heads, kv, position, kernel, norm).prop_map(
        |((kind, router), (heads_per_expert, kv_heads, head_dim), kv, position, kernel, norm)| {
            let (layer_norm, width, eps, placement) = norm;
            let router = fit(kind, router.unwrap_or(RouterSpec::none()));
            let shares = matches!(kind, Kind::SharedQueries);
            let cuts = matches!(kind, Kind::Cut { .. });
            let alone = shares || cuts || router.net == RouterNet::QueryNorm;
            let heads_per_expert = if alone { 1 } else { heads_per_expert };
            let query_share = if shares { router.experts() / router.choice.groups } else { 1 };
            let heads = router.experts() / query_share;
            let kv_heads = if cuts { KvHeads::OnePerHead } else { kv_heads };
            let (kv_heads, group) = kv_heads.of(heads, heads_per_expert);

            // What does not go together.
            let head_dim =
                if shares || matches!(kv, From::Mixed(..)) { head_dim.next_multiple_of(8) } else { head_dim };
            let kv_width = kv_heads * head_dim;
            let whole = kv_heads == 1 || head_dim.is_multiple_of(4);
            let kv = match kv {
                _ if cuts => KvProjection::Projected,
                From::Identity if !whole || !(4..=128).contains(&kv_width) => KvProjection::Projected,
                From::Projected => KvProjection::Projected,
                From::Identity => KvProjection::Identity,
                From::Memory => KvProjection::Memory,
                From::Mixed(size, top_k, weighting) => {
                    let choice = ExpertChoice {
                        groups: kv_heads,
                        ..ExpertChoice::top_k(kv_heads * size, top_k, weighting)
                    };
                    KvProjection::MixedValues(RouterSpec::new(RouterNet::Linear, choice))
                }
            };
            let remembers = kv == KvProjection::Memory;
            let kernel = if remembers || cuts { AttentionKernel::Softmax } else { kernel };
            let position = match position {
                _ if remembers => PositionEncoding::None,
                PositionEncoding::Rope { .. } if kv == KvProjection::Identity => PositionEncoding::None,
                PositionEncoding::Rope { .. } if !head_dim.is_multiple_of(4) => PositionEncoding::None,
                PositionEncoding::Rope { theta, channels } => {
                    let part = 2 * (1 + channels % (head_dim / 2));
                    let channels = if channels.is_multiple_of(2) { head_dim } else { part };
                    PositionEncoding::Rope { theta, channels }
                }
                PositionEncoding::Relative { .. } if cuts || shares || kernel != AttentionKernel::Softmax => {
                    PositionEncoding::None
                }
                position => position,
            };
            let width = if kv == KvProjection::Identity { kv_width } else { width };
            // A narrow row is sometimes nearly constant, and its norm all rounding.
            let placement = match placement {
                NormPlacement::After if width < 12 => NormPlacement::Before,
                placement => placement,
            };
            let kind = if layer_norm { NormKind::Layer } else { NormKind::Rms };
            HeadMixtureSpec {
                norm: NormSpec { kind, width, eps, placement },
                router,
                query_share,
                heads_per_expert,
                kv_heads,
                group,
                head_dim,
                kv,
                position,
                kernel,
            }
        },
    )
}

/// The router as a kind of layer may have it.
fn fit(kind: Kind, router: RouterSpec) -> RouterSpec {
    let RouterSpec { net, choice, .. } = router;
    let net = if net == RouterNet::None { RouterNet::Linear } else { net };
    let size = choice.routed() / choice.groups;
    // Without shared experts, but not without any.
    let own = ExpertChoice { shared: 0, shared_softmax: false, two_stage: false, ..choice };
    match kind {
        Kind::Any => router,
        Kind::SharedQueries => {
            let net = if net == RouterNet::QueryNorm { RouterNet::Linear } else { net };
            let (size, top_k) = (size.max(2), choice.top_k.max(1));
            RouterSpec::new(net, ExpertChoice { experts: choice.groups * size, top_k, ..own })
        }
        Kind::Cut { causal } => {
            let size = size.max(1);
            let top_k = choice.top_k.clamp(1, size);
            let choice = ExpertChoice { experts: size, groups: 1, top_k, ..own };
            RouterSpec { net: RouterNet::Linear, choice, scope: Scope::Sequence { causal } }
        }
    }
}
