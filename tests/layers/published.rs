//! The published mixtures of docs/families.md, each as a layer of small size: the columns of its table.

use headwise::internal::{
    Activation, AttentionKernel, ExpertChoice, HeadMixtureSpec, KvProjection, NormKind, NormPlacement,
    NormSpec, PositionEncoding, RouterNet, RouterSpec, Scope, Weighting,
};

use super::drawn::{Biases, OutputBiased};

/// A mixture: its layer, its biases, and whether a token sees only what comes before it.
pub struct Published {
    pub name: &'static str,
    pub spec: HeadMixtureSpec,
    pub biases: Biases,
    pub causal: bool,
}

/// Ordinary attention of 4 heads of 8 channels.
fn dense(kind: NormKind) -> HeadMixtureSpec {
    HeadMixtureSpec {
        norm: NormSpec::before(kind, 20, 1e-5),
        router: RouterSpec::none(),
        query_share: 1,
        heads_per_expert: 4,
        kv_heads: 4,
        group: 1,
        head_dim: 8,
        kv: KvProjection::Projected,
        position: PositionEncoding::None,
        kernel: AttentionKernel::Softmax,
    }
}

fn router(net: RouterNet, experts: u32, top_k: u32, weighting: Weighting) -> RouterSpec {
    RouterSpec::new(net, ExpertChoice::top_k(experts, top_k, weighting))
}

const ROPE: PositionEncoding = PositionEncoding::Rope { theta: 1e4, channels: 8 };
const RENORMALISED: Weighting = Weighting::SoftmaxAllRenormalised { eps: 1e-6 };

/// MoA, JetMoE, MoLM and SUT: experts of m heads over m shared key/value heads.
fn shared_keys() -> Vec<Published> {
    let none = Biases::default();
    let shared = |kind, router, heads| HeadMixtureSpec {
        router,
        heads_per_expert: heads,
        kv_heads: heads,
        ..dense(kind)
    };
    let moa = |weighting| shared(NormKind::Layer, router(RouterNet::Linear, 6, 3, weighting), 1);
    let after = NormSpec { placement: NormPlacement::After, ..moa(RENORMALISED).norm };
    let mlp = |activation| RouterNet::Mlp { hidden: 12, activation };
    let molm = |heads| HeadMixtureSpec {
        kernel: AttentionKernel::StickBreaking,
        ..shared(NormKind::Layer, router(mlp(Activation::Gelu), 5, 2, Weighting::SoftmaxAll), heads)
    };
    let jetmoe = HeadMixtureSpec {
        position: ROPE,
        ..shared(NormKind::Rms, router(RouterNet::Linear, 6, 2, Weighting::SoftmaxTopK), 3)
    };
    let identity = HeadMixtureSpec { kv: KvProjection::Identity, head_dim: 20, ..molm(1) };
    let sut = HeadMixtureSpec {
        position: PositionEncoding::Relative { clip: 3 },
        ..shared(NormKind::Layer, router(mlp(Activation::Tanh), 6, 2, RENORMALISED), 4)
    };
    let one = |name, spec, biases, causal| Published { name, spec, biases, causal };
    let hidden = Biases { hidden: true, ..none };
    vec![
        one("MoA, the paper's gates", moa(RENORMALISED), none, false),
        one("MoA, the code's gates", moa(Weighting::SoftmaxAll), none, true),
        one("MoA, norm after", HeadMixtureSpec { norm: after, ..moa(RENORMALISED) }, none, false),
        one("JetMoE", jetmoe, Biases { output: OutputBiased::Once, ..none }, true),
        one("MoLM", identity, hidden, true),
        one("MoLM with projections", molm(2), Biases { kv: true, ..hidden }, true),
        one("SUT", sut, Biases { output: OutputBiased::Once, ..hidden }, false),
    ]
}

/// MoH, SwitchHead, BAM and UoE: every head, or every module, may have keys and values of its own.
fn own_keys() -> Vec<Published> {
    let none = Biases::default();
    let moh = |shared, routed, two_stage| HeadMixtureSpec {
        router: RouterSpec::new(
            RouterNet::Linear,
            ExpertChoice {
                shared,
                scale: routed as f32,
                shared_softmax: shared > 0,
                two_stage,
                ..ExpertChoice::top_k(6, routed, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
            },
        ),
        heads_per_expert: 1,
        kv_heads: 6,
        ..dense(NormKind::Layer)
    };
    let constant = ExpertChoice { shared: 4, ..ExpertChoice::top_k(8, 2, Weighting::Constant) };
    let moh_llama = HeadMixtureSpec {
        router: RouterSpec::new(RouterNet::QueryNorm, constant),
        heads_per_expert: 1,
        kv_heads: 2,
        group: 4,
        position: ROPE,
        ..dense(NormKind::Rms)
    };
    let within = ExpertChoice { groups: 3, ..ExpertChoice::top_k(12, 2, Weighting::Sigmoid) };
    let switch = RouterSpec::new(RouterNet::Linear, within);
    let switch_head = HeadMixtureSpec {
        router: switch,
        query_share: 4,
        heads_per_expert: 1,
        kv_heads: 3,
        kv: KvProjection::MixedValues(switch),
        position: PositionEncoding::Rope { theta: 1e4, channels: 4 },
        ..dense(NormKind::Layer)
    };
    let bam = |kv_heads| HeadMixtureSpec {
        router: router(RouterNet::Linear, 3, 3, Weighting::SoftmaxAll),
        kv_heads,
        group: 2,
        position: ROPE,
        ..dense(NormKind::Rms)
    };
    let cut = |causal| {
        let choice = ExpertChoice::top_k(4, 2, Weighting::Constant);
        HeadMixtureSpec {
            router: RouterSpec { net: RouterNet::Linear, choice, scope: Scope::Sequence { causal } },
            heads_per_expert: 1,
            position: ROPE,
            ..dense(NormKind::Layer)
        }
    };
    let all = Biases { query: true, kv: true, output: OutputBiased::Once, ..none };
    let of_heads = Biases { output: OutputBiased::OfExpert, router: true, ..all };
    let one = |name, spec, biases, causal| Published { name, spec, biases, causal };
    vec![
        one("MoH-ViT", moh(2, 2, true), all, false),
        one("MoH-DiT without shared heads", moh(0, 3, false), all, false),
        one("MoH-DiT, all heads shared", moh(6, 0, false), all, false),
        one("MoH-LLaMA3", moh_llama, none, true),
        one("SwitchHead", switch_head, none, true),
        one("BAM, keys and values of each module", bam(6), none, true),
        one("BAM, shared keys and values", bam(2), none, true),
        one("UoE", cut(true), of_heads, true),
        one("UoE, both ways", cut(false), of_heads, false),
    ]
}

/// Every column, and ordinary attention as the mixture that it is.
pub fn published() -> Vec<Published> {
    let one = |name, spec, causal| Published { name, spec, biases: Biases::default(), causal };
    let constant = ExpertChoice { shared: 4, ..ExpertChoice::top_k(4, 0, Weighting::Constant) };
    let all_on = HeadMixtureSpec {
        router: RouterSpec::new(RouterNet::Linear, constant),
        heads_per_expert: 1,
        ..dense(NormKind::Layer)
    };
    let mut all = vec![
        one("ordinary attention", dense(NormKind::Layer), true),
        one("the mixture whose heads are all on", all_on, false),
    ];
    all.extend(shared_keys());
    all.extend(own_keys());
    all
}
