//! The head mixture computes what its f64 oracle in `tests/reference/head_mixture.rs` says: within 1e-5, with the same
//! experts, for random specifications, steps and kernel shapes.
//!
//! A token whose choice is a near-tie may choose otherwise. It is left out, and counted: such tokens must be rare.

mod reference;
mod support;

mod layers {
    pub mod drawn;
    pub mod mixture;
}

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use headwise::internal::{
    Activation, AttentionKernel, ExpertChoice, ExpertMlpSpec, HeadMixtureSpec, KernelChoice, KvProjection,
    MlpActivation, NormKind, NormSpec, PositionEncoding, Precision, RouterNet, RouterSpec, Weighting,
};
use layers::{
    drawn::{Drawn, Use, any_drawn},
    mixture::{Ran, Tensors, oracle, run_layer},
};
use support::{CHOICES, assert_close, check};

/// Scores closer than this may be ordered either way.
const MIN_MARGIN: f64 = 1e-5;

/// Compares what a layer did to a sequence with what it must do; returns the tokens left out.
fn compare(drawn: &Drawn, tensors: &Tensors, sequence: u32, ran: &Ran) -> usize {
    let expected = oracle(drawn, tensors, sequence);
    let width = drawn.spec.norm.width as usize;
    let mut skipped = 0;
    if drawn.spec.router.is_some() {
        let found = expected.routing.routes.compare(&ran.experts, &ran.gates, MIN_MARGIN).unwrap();
        assert!(found.gate_error <= 1e-5, "gates differ by {:e}", found.gate_error);
        skipped = found.skipped;
    }
    let mut rows = [Vec::new(), Vec::new()];
    for (token, margin) in expected.routing.routes.margins.iter().enumerate() {
        if *margin >= MIN_MARGIN {
            rows[0].extend(&ran.y[token * width..][..width]);
            rows[1].extend(&expected.y[token * width..][..width]);
        }
    }
    let [got, expected] = rows;
    assert_close(&got, &expected, sequence);
    skipped
}

#[test]
fn any_head_mixture_matches_the_reference() {
    let (tokens, skipped) = (Cell::new(0), Cell::new(0));
    let seen = RefCell::new(BTreeSet::new());
    check(320, any_drawn(), |drawn| {
        drawn.spec.check().unwrap();
        let tensors = Tensors::new(&drawn.spec, &drawn.use_);
        let (ran, _) = run_layer(&drawn, &tensors);
        for (sequence, ran) in (0..).zip(&ran) {
            let length = drawn.use_.length(sequence) as usize;
            assert_eq!(ran.y.len(), length * drawn.spec.norm.width as usize);
            tokens.set(tokens.get() + length);
            skipped.set(skipped.get() + compare(&drawn, &tensors, sequence, ran));
        }
        seen.borrow_mut().extend(traits(&drawn));
    });
    let (tokens, skipped) = (tokens.get(), skipped.get());
    assert!(skipped * 1000 <= tokens, "left out {skipped} of {tokens} tokens");
    let missing: Vec<String> = all_traits().into_iter().filter(|one| !seen.borrow().contains(one)).collect();
    assert!(missing.is_empty(), "never drawn: {missing:?}");
}

/// What is special about a case, one choice of the specification crossed with another that it meets on its way.
fn traits(drawn: &Drawn) -> Vec<String> {
    let Drawn { spec, use_ } = drawn;
    let net = match spec.router.map(|router| router.net) {
        None => "no router",
        Some(RouterNet::Linear) => "linear",
        Some(RouterNet::Mlp { .. }) => "mlp",
        Some(RouterNet::QueryNorm) => "query norm",
    };
    let heads = spec.experts() * spec.heads_per_expert;
    let kv = match spec.kv {
        KvProjection::Identity => "identity",
        KvProjection::Projected { bias: true } => "biased",
        KvProjection::Projected { bias: false } => "unbiased",
    };
    let rotated = if spec.position == PositionEncoding::None { "as they are" } else { "rotated" };
    let mut traits: Vec<String> = use_
        .steps
        .iter()
        .map(|counts| if counts.iter().sum::<u32>() <= 4 { "few" } else { "many" })
        .map(|rows| format!("{net}, {:?}, {rows}, {:?}", spec.kernel, use_.kernels))
        .collect();
    traits.push(format!("{kv}, {:?}, {rotated}", spec.kernel));
    traits.push(format!("{net}, {:?}", spec.norm.kind));
    if let Some(router) = spec.router {
        let choice = router.choice;
        let weighting = format!("{:?}", choice.weighting);
        let weighting = weighting.split(' ').next().unwrap_or_default();
        let shared = if choice.shared > 0 { "shared" } else { "none shared" };
        traits.push(format!("{net}, {weighting}, {shared}"));
        traits.push(format!("{net}, {}", if router.active() == router.experts() { "all" } else { "some" }));
    }
    traits.extend([
        format!("{:?}", use_.precision),
        format!("{} key/value heads", if spec.kv_heads == 1 { "one" } else { "more" }),
        format!("output bias {}", spec.output_bias),
    ]);
    let layout = [
        (heads > 1 && spec.kv_heads == heads, "a key/value head each"),
        (
            spec.router.is_some() && spec.heads_per_expert > 1 && spec.kv_heads == spec.heads_per_expert,
            "tiled",
        ),
        (spec.group > 1 && spec.kv_heads > 1, "grouped"),
        (heads > spec.kv_heads * spec.group && spec.group > 1, "grouped and tiled"),
        (!spec.head_dim.is_multiple_of(4), "odd head size"),
        (use_.steps.len() > 1, "later steps"),
        (use_.length(0) > 256, "long"),
    ];
    traits.extend(layout.into_iter().filter(|(is, _)| *is).map(|(_, name)| name.to_owned()));
    traits
}

/// Every trait that the draws must show.
fn all_traits() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let kernels = [AttentionKernel::Softmax, AttentionKernel::StickBreaking];
    for net in ["no router", "linear", "mlp", "query norm"] {
        for kernel in kernels {
            for rows in ["few", "many"] {
                all.extend(CHOICES.map(|choice| format!("{net}, {kernel:?}, {rows}, {choice:?}")));
            }
        }
        let norms = if net == "linear" { &["Rms"][..] } else { &["Rms", "Layer"] };
        all.extend(norms.iter().map(|norm| format!("{net}, {norm}")));
        if net != "no router" {
            for weighting in ["SoftmaxTopK", "SoftmaxAll", "SoftmaxAllRenormalised", "Sigmoid", "Binary"] {
                all.extend(["shared", "none shared"].map(|shared| format!("{net}, {weighting}, {shared}")));
            }
            all.extend(["all", "some"].map(|some| format!("{net}, {some}")));
        }
    }
    for kernel in kernels {
        let kv = ["identity", "biased", "unbiased"];
        all.extend(kv.map(|kv| format!("{kv}, {kernel:?}, as they are")));
        all.extend(kv[1..].iter().map(|kv| format!("{kv}, {kernel:?}, rotated")));
    }
    let single = [
        "F32",
        "F16",
        "one key/value heads",
        "more key/value heads",
        "output bias true",
        "output bias false",
        "a key/value head each",
        "tiled",
        "grouped",
        "grouped and tiled",
        "odd head size",
        "later steps",
        "long",
    ];
    all.extend(single.map(str::to_owned));
    all
}

/// JetMoE's attention, small: a layer to be changed.
fn plain_spec() -> HeadMixtureSpec {
    let choice = ExpertChoice { experts: 8, shared: 0, top_k: 2, weighting: Weighting::SoftmaxTopK };
    HeadMixtureSpec {
        norm: NormSpec { kind: NormKind::Rms, width: 24, eps: 1e-6 },
        router: Some(RouterSpec { net: RouterNet::Linear, choice }),
        heads_per_expert: 2,
        kv_heads: 2,
        group: 1,
        head_dim: 8,
        kv: KvProjection::Projected { bias: false },
        position: PositionEncoding::Rope { theta: 1e4 },
        kernel: AttentionKernel::Softmax,
        output_bias: true,
    }
}

/// The same with other routers.
fn routed_specs() -> [HeadMixtureSpec; 3] {
    let mut specs = [plain_spec(); 3];
    let nets = [
        RouterNet::Linear,
        RouterNet::Mlp { hidden: 12, activation: Activation::Gelu },
        RouterNet::QueryNorm,
    ];
    for (spec, net) in specs.iter_mut().zip(nets) {
        spec.router.as_mut().unwrap().net = net;
    }
    specs[1].kernel = AttentionKernel::StickBreaking;
    specs[2].heads_per_expert = 1;
    specs
}

fn plain_use(kernels: KernelChoice, steps: &[&[u32]]) -> Use {
    Use {
        kernels,
        precision: Precision::F32,
        part_rows: 1 << 16,
        steps: steps.iter().map(|counts| counts.to_vec()).collect(),
        spare_capacity: 1,
        routes_before: 0,
        seed: 11,
    }
}

/// Weights of experts that no token chose may be anything: nobody reads them.
#[test]
fn experts_that_no_token_chose_are_not_computed() {
    let steps: [&[&[u32]]; 2] = [&[&[1], &[1]], &[&[3, 2], &[1, 1]]];
    for (kernels, mut spec) in
        CHOICES.into_iter().flat_map(|kernels| routed_specs().map(|spec| (kernels, spec)))
    {
        spec.router.as_mut().unwrap().choice.experts = 24;
        for steps in steps {
            let drawn = Drawn { spec, use_: plain_use(kernels, steps) };
            let mut tensors = Tensors::new(&drawn.spec, &drawn.use_);
            let (before, _) = run_layer(&drawn, &tensors);
            let chosen: BTreeSet<u32> = before.iter().flat_map(|ran| &ran.experts).copied().collect();
            let idle: Vec<u32> = (0..spec.experts()).filter(|expert| !chosen.contains(expert)).collect();
            assert!(idle.len() >= 8, "{idle:?}");
            let query_decides = spec.router.is_some_and(|router| router.net == RouterNet::QueryNorm);
            for &expert in &idle {
                let expert_size = tensors.output.len() / spec.experts() as usize;
                let own = expert as usize * expert_size..(expert as usize + 1) * expert_size;
                tensors.output[own.clone()].fill(f64::NAN);
                // Where the queries decide, all of them are computed.
                if !query_decides {
                    tensors.query[own].fill(f64::NAN);
                }
            }
            let (after, _) = run_layer(&drawn, &tensors);
            assert!(after == before, "{kernels:?}, {steps:?}: the idle experts {idle:?} mattered");
        }
    }
}

/// Counted multiply-accumulates: what all tokens need, and what each chosen expert needs.
#[test]
fn work_grows_with_the_chosen_experts_not_with_all() {
    for (kernels, spec) in CHOICES.into_iter().flat_map(|kernels| routed_specs().map(|spec| (kernels, spec)))
    {
        for (steps, keys) in [([&[3u32, 1][..]], 7), ([&[9, 4][..]], 55)] {
            let tokens: u32 = steps[0].iter().sum();
            for (experts, top_k) in [(8, 1), (8, 2), (8, 8), (2, 2), (64, 2)] {
                let mut spec = spec;
                let choice = &mut spec.router.as_mut().unwrap().choice;
                (choice.experts, choice.top_k) = (experts, top_k);
                let drawn = Drawn { spec, use_: plain_use(kernels, &steps) };
                let (_, counters) = run_layer(&drawn, &Tensors::new(&drawn.spec, &drawn.use_));

                let [width, head_dim, heads, kv_heads] =
                    [spec.norm.width, spec.head_dim, spec.heads_per_expert, spec.kv_heads].map(u64::from);
                let [tokens, experts, top_k] = [tokens, experts, top_k].map(u64::from);
                let projection = heads * head_dim * width;
                let (router, queries) = match spec.router.unwrap().net {
                    RouterNet::Linear => (experts * width, top_k),
                    RouterNet::Mlp { hidden, .. } => (u64::from(hidden) * (width + experts), top_k),
                    RouterNet::QueryNorm => (experts * head_dim, experts),
                };
                let keys_values = 2 * kv_heads * head_dim * width;
                let attention = 2 * keys * top_k * heads * head_dim;
                let expected = tokens * (router + (queries + top_k) * projection + keys_values) + attention;
                assert_eq!(counters[0].macs, expected, "{kernels:?}, {spec:?}");
            }
        }
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut HeadMixtureSpec), parameter: &str, why: &str) {
    let mut spec = plain_spec();
    spec.check().unwrap();
    change(&mut spec);
    let message = spec.check().expect_err("contradicts itself").to_string();
    let named = message.starts_with(&format!("{parameter}: found ")) && message.contains(why);
    assert!(named, "'{message}' names neither '{parameter}' nor '{why}'");
}

#[test]
fn contradictions_are_refused_by_name() {
    fn choice(spec: &mut HeadMixtureSpec) -> &mut ExpertChoice {
        &mut spec.router.as_mut().unwrap().choice
    }
    fn net(spec: &mut HeadMixtureSpec, net: RouterNet) {
        spec.router.as_mut().unwrap().net = net;
    }
    fn identity(spec: &mut HeadMixtureSpec, kv_heads: u32, head_dim: u32, width: u32) {
        spec.position = PositionEncoding::None;
        spec.kv = KvProjection::Identity;
        (spec.kv_heads, spec.head_dim, spec.norm.width) = (kv_heads, head_dim, width);
    }
    refused(|spec| choice(spec).top_k = 9, "experts per token", "1 to 8");
    refused(|spec| choice(spec).top_k = 0, "experts per token", "1 to 8");
    refused(
        |spec| choice(spec).shared = 7,
        "experts per token",
        "1 to 1 (8 experts, 7 of them for every token)",
    );
    refused(|spec| choice(spec).shared = 9, "experts per token", "9 of them");
    refused(|spec| choice(spec).experts = 0, "experts", "1 to 256");
    refused(|spec| choice(spec).experts = 257, "experts", "1 to 256");
    refused(|spec| spec.norm.kind = NormKind::Layer, "norm", "RMSNorm");
    refused(|spec| net(spec, RouterNet::QueryNorm), "heads per expert", "1");

    refused(|spec| spec.kv_heads = 3, "query heads", "3 key/value heads in groups of 1");
    refused(|spec| spec.group = 3, "query heads", "2 key/value heads in groups of 3");
    refused(|spec| spec.kv_heads = 0, "query heads", "0 key/value heads");
    refused(|spec| spec.group = 0, "query heads", "groups of 0");
    refused(|spec| spec.heads_per_expert = 0, "query heads", "divide");
    // More key/value heads than anyone reads.
    refused(|spec| spec.kv_heads = 32, "query heads", "32 key/value heads");
    refused(|spec| (spec.router, spec.group) = (None, 2), "query heads", "in groups of 2");

    refused(|spec| spec.head_dim = 6, "head size", "a multiple of 4");
    refused(|spec| spec.head_dim = 0, "head size", "1 to 128");
    refused(|spec| spec.head_dim = 132, "head size", "1 to 128");
    let stick = |spec: &mut HeadMixtureSpec| spec.kernel = AttentionKernel::StickBreaking;
    refused(|spec| (stick(spec), spec.head_dim = 1028).0, "head size", "1 to 1024");

    refused(|spec| identity(spec, 2, 8, 24), "key/value width", "24");
    refused(|spec| identity(spec, 2, 6, 12), "head size", "a multiple of 4");
    refused(
        |spec| {
            identity(spec, 2, 8, 16);
            spec.position = PositionEncoding::Rope { theta: 1e4 };
        },
        "positions",
        "none",
    );
}

#[test]
fn an_mlp_has_no_queries_to_route_by() {
    let HeadMixtureSpec { norm, router, .. } = plain_spec();
    let activation = MlpActivation::SwiGlu;
    let mut mlp = ExpertMlpSpec { norm, router, hidden: 8, activation, output_bias: false };
    mlp.check().unwrap();
    mlp.router.as_mut().unwrap().net = RouterNet::QueryNorm;
    let message = mlp.check().expect_err("contradicts itself").to_string();
    assert!(message.starts_with("router: found query length"), "'{message}'");
}
