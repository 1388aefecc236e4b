//! The head mixture computes what its f64 oracle in `crates/reference/src/head_mixture.rs` says: within 1e-5, with the same
//! experts, for random specifications, steps and kernel shapes. So does the expert MLP beside it.
//!
//! A token whose choice is a near-tie may choose otherwise. It is left out, and counted: such tokens must be rare.

use headwise_reference as reference;
mod support;

mod layers {
    pub mod drawn;
    pub mod mixture;
    pub mod mlp;
    pub mod published;
}

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use headwise::internal::{
    Activation, AttentionKernel, AttentionSite, Buffer, Copy, ExpertChoice, ExpertMlpSpec, HeadMixtureSpec,
    Hook, Inside, KernelChoice, KvProjection, MlpActivation, NormKind, NormPlacement, NormSpec, Place,
    PositionEncoding, Precision, Recorder, RouterNet, RouterSpec, Scope, Site, Sublayer, Weighting,
};
use layers::{
    drawn::{Biases, Drawn, OutputBiased, Use, any_drawn},
    mixture::{Chosen, Expected, Ran, Tensors, oracle, run_layer, run_layer_with},
    mlp::any_mlp,
    published::{Published, published},
};
use reference::router::Routing;
use support::{CHOICES, assert_close, check};

/// Scores closer than this may be ordered either way.
const MIN_MARGIN: f64 = 1e-5;

/// Compares what a layer did to a sequence with what it must do; returns the tokens left out.
fn compare(drawn: &Drawn, sequence: u32, expected: &Expected, ran: &Ran) -> usize {
    let width = drawn.spec.norm.width as usize;
    for (routing, chosen) in expected.routing.iter().zip(&ran.chosen) {
        if let Some(routing) = routing {
            compare_routes(&drawn.spec, routing, chosen);
        }
    }
    let mut rows = [Vec::new(), Vec::new()];
    let clear = |margin: &&f64| **margin >= MIN_MARGIN;
    for (token, _) in expected.margins.iter().enumerate().filter(|(_, margin)| clear(margin)) {
        rows[0].extend(&ran.out[token * width..][..width]);
        rows[1].extend(&expected.out[token * width..][..width]);
    }
    let [got, out] = rows;
    assert_close(&got, &out, sequence);
    expected.margins.iter().filter(|margin| !clear(margin)).count()
}

fn compare_routes(spec: &HeadMixtureSpec, routing: &Routing, chosen: &Chosen) {
    assert_close(&chosen.scores, &routing.scores, "scores");
    let found = routing.routes.compare(&chosen.experts, &chosen.gates, MIN_MARGIN).unwrap();
    let choice = spec.router.choice;
    let tolerance = 1e-5 * f64::from(2.0 * choice.scale.max(1.0) * choice.shared.max(1) as f32);
    assert!(found.gate_error <= tolerance, "gates differ by {:e}", found.gate_error);
}

#[test]
fn any_head_mixture_matches_the_reference() {
    let (tokens, skipped) = (Cell::new(0), Cell::new(0));
    let seen = RefCell::new(BTreeSet::new());
    check(560, any_drawn(), |drawn| {
        drawn.spec.check().unwrap();
        let tensors = Tensors::new(&drawn.spec, &drawn.use_);
        let (ran, _) = run_layer(&drawn, &tensors);
        let expected = oracle(&drawn, &tensors);
        for ((sequence, ran), expected) in (0..).zip(&ran).zip(&expected) {
            let length = drawn.use_.length(sequence) as usize;
            assert_eq!(ran.out.len(), length * drawn.spec.norm.width as usize);
            tokens.set(tokens.get() + length);
            skipped.set(skipped.get() + compare(&drawn, sequence, expected, ran));
        }
        seen.borrow_mut().extend(traits(&drawn));
    });
    let (tokens, skipped) = (tokens.get(), skipped.get());
    assert!(skipped * 1000 <= tokens, "left out {skipped} of {tokens} tokens");
    let missing: Vec<String> = all_traits().into_iter().filter(|one| !seen.borrow().contains(one)).collect();
    assert!(missing.is_empty(), "never drawn: {missing:?}");
}

#[test]
fn every_published_mixture_is_this_layer() {
    for Published { name, spec, biases, causal } in published() {
        spec.check().unwrap_or_else(|error| panic!("{name}: {error}"));
        let cut = matches!(spec.router.scope, Scope::Sequence { .. });
        for kernels in CHOICES {
            // A prompt of two sequences, then, where there is a next token, one at a time and several.
            let steps: &[&[u32]] = if causal && !cut { &[&[7, 5], &[1, 1], &[3, 4]] } else { &[&[9, 9]] };
            let use_ = Use { biases, causal, ..plain_use(kernels, steps) };
            let drawn = Drawn { spec, use_ };
            let tensors = Tensors::new(&drawn.spec, &drawn.use_);
            let (ran, _) = run_layer(&drawn, &tensors);
            for ((sequence, ran), expected) in (0..).zip(&ran).zip(&oracle(&drawn, &tensors)) {
                assert_eq!(compare(&drawn, sequence, expected, ran), 0, "{name}: a near-tie");
            }
        }
    }
}

/// With or without experts, with every placement of the norm.
#[test]
fn any_expert_mlp_matches_its_formula() {
    let skipped = Cell::new(0);
    check(96, any_mlp(), |mlp| skipped.set(skipped.get() + mlp.check()));
    assert!(skipped.get() <= 2, "left out {} tokens", skipped.get());
}

fn net_name(net: RouterNet) -> &'static str {
    match net {
        RouterNet::None => "no router",
        RouterNet::Linear => "linear",
        RouterNet::Mlp { .. } => "mlp",
        RouterNet::Cosine { .. } => "cosine",
        RouterNet::QueryNorm => "query norm",
    }
}

fn weighting_name(weighting: Weighting) -> &'static str {
    match weighting {
        Weighting::SoftmaxTopK => "SoftmaxTopK",
        Weighting::SoftmaxAll => "SoftmaxAll",
        Weighting::SoftmaxAllRenormalised { .. } => "SoftmaxAllRenormalised",
        Weighting::Sigmoid => "Sigmoid",
        Weighting::Constant => "Constant",
    }
}

/// What is special about a case, one choice of the specification crossed with another that it meets on its way.
fn traits(drawn: &Drawn) -> Vec<String> {
    let Drawn { spec, use_ } = drawn;
    let (net, choice) = (net_name(spec.router.net), spec.router.choice);
    let heads = spec.query_heads();
    let kv = match spec.kv {
        KvProjection::Identity => "identity",
        KvProjection::Projected => "projected",
        KvProjection::Memory => "memory",
        KvProjection::MixedValues(_) => "mixed values",
    };
    let position = match spec.position {
        PositionEncoding::None => "none",
        PositionEncoding::Relative { .. } => "relative",
        PositionEncoding::Rope { channels, .. } if channels < spec.head_dim => "part of rope",
        PositionEncoding::Rope { .. } => "rope",
    };
    let cut = matches!(spec.router.scope, Scope::Sequence { .. });
    let shares = spec.query_share > 1;
    let mut traits = Vec::new();
    for rows in use_.steps.iter().map(|counts| if counts.iter().sum::<u32>() <= 4 { "few" } else { "many" }) {
        traits.push(format!("{net}, {:?}, {rows}, {:?}", spec.kernel, use_.kernels));
        traits.push(format!("{kv}, {rows}, {:?}", use_.kernels));
        traits.push(format!("{position}, {rows}"));
        if shares {
            traits.push(format!("shared queries, {rows}, {:?}", use_.kernels));
        }
        if use_.biases.query {
            traits.push(format!("query bias, {rows}, {}", if shares { "shared" } else { net }));
        }
    }
    traits.push(format!("{kv}, {:?}, {position}", spec.kernel));
    traits.push(format!("{net}, {:?}, {:?}", spec.norm.kind, spec.norm.placement));
    if spec.router.routes() && !cut && !shares {
        let weighting = weighting_name(choice.weighting);
        let shared = if choice.shared > 0 { "shared" } else { "none shared" };
        traits.push(format!("{net}, {weighting}, {shared}"));
        traits.push(format!("{net}, {}", if spec.active() == spec.experts() { "all" } else { "some" }));
    }
    traits.extend([
        format!("{:?}", use_.precision),
        format!("{} key/value heads", if spec.kv_heads == 1 { "one" } else { "more" }),
        format!("{:?} output bias", use_.biases.output),
        format!("{kv}, {}", if use_.causal { "causal" } else { "both ways" }),
    ]);
    let Biases { kv: kv_bias, router, hidden, .. } = use_.biases;
    let scored = [
        (router, "router bias"),
        (hidden, "hidden bias"),
        (choice.scale != 1.0, "scale"),
        (choice.shared_softmax, "scored shared experts"),
        (choice.two_stage, "two stages"),
        (choice.groups > 1, "groups"),
        (choice.routed() == 0, "shared experts alone"),
    ];
    traits.extend(scored.into_iter().filter(|(is, _)| *is).map(|(_, name)| format!("{net}, {name}")));
    if let Some(router) = spec.value_router() {
        traits.push(format!("mixed values, {}", weighting_name(router.choice.weighting)));
    }
    let lengths: BTreeSet<u32> = use_.steps[0].iter().copied().collect();
    let cut_bias = format!("cut, {:?} bias, {position}", use_.biases.output);
    let cut_causal = format!("cut, {:?}", spec.router.scope);
    let sections = format!("{:?}, {position}, sections", spec.kernel);
    let layout = [
        (heads > 1 && spec.kv_heads == heads, "a key/value head each"),
        (
            spec.router.routes() && spec.heads_per_expert > 1 && spec.kv_heads == spec.heads_per_expert,
            "tiled",
        ),
        (spec.group > 1 && spec.kv_heads > 1, "grouped"),
        (heads > spec.kv_heads * spec.group && spec.group > 1, "grouped and tiled"),
        (!spec.head_dim.is_multiple_of(4), "odd head size"),
        (use_.steps.len() > 1, "later steps"),
        (use_.length(0) > 256, "long"),
        (kv_bias && spec.kv == KvProjection::Projected, "key/value bias"),
        (kv_bias && spec.kv == KvProjection::Memory, "memory bias"),
        (spec.kv == KvProjection::Memory && use_.memory.contains(&0), "empty memory"),
        (spec.kv == KvProjection::Memory && use_.memory.iter().any(|&keys| keys > 256), "long memory"),
        (shares && spec.value_router().is_some(), "shared queries and mixed values"),
        (!shares && spec.router.routes() && spec.value_router().is_some(), "routed queries and mixed values"),
        (use_.sections > 1, &sections[..]),
        (use_.sections > 1 && cut, "cut, sections"),
        (use_.sections > 1 && spec.kv == KvProjection::Memory, "memory in sections"),
        (cut, &cut_bias[..]),
        (cut, &cut_causal),
        (cut && lengths.len() > 1, "cut sequences of unequal lengths"),
        (cut && use_.sequences() > 1 && lengths.len() == 1, "cut sequences of equal lengths"),
        (cut && use_.steps[0].iter().sum::<u32>() <= 4, "a short cut"),
    ];
    traits.extend(layout.into_iter().filter(|(is, _)| *is).map(|(_, name)| name.to_owned()));
    traits
}

/// Every trait that the draws must show.
fn all_traits() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let kernels = [AttentionKernel::Softmax, AttentionKernel::StickBreaking];
    let placements =
        [NormPlacement::Before, NormPlacement::After, NormPlacement::Shared, NormPlacement::None];
    for net in ["no router", "linear", "mlp", "cosine", "query norm"] {
        for rows in ["few", "many"] {
            for kernel in kernels {
                all.extend(CHOICES.map(|choice| format!("{net}, {kernel:?}, {rows}, {choice:?}")));
            }
            all.push(format!("query bias, {rows}, {net}"));
        }
        for kind in [NormKind::Rms, NormKind::Layer] {
            all.extend(placements.map(|placement| format!("{net}, {kind:?}, {placement:?}")));
        }
        if net == "no router" {
            continue;
        }
        for weighting in ["SoftmaxTopK", "SoftmaxAll", "SoftmaxAllRenormalised", "Sigmoid", "Constant"] {
            all.extend(["shared", "none shared"].map(|shared| format!("{net}, {weighting}, {shared}")));
        }
        all.extend(["all", "some", "scale", "groups"].map(|some| format!("{net}, {some}")));
        if net == "linear" || net == "mlp" {
            let scored = ["router bias", "scored shared experts", "two stages", "shared experts alone"];
            all.extend(scored.map(|name| format!("{net}, {name}")));
        }
    }
    let every = ["none", "relative", "part of rope", "rope"];
    all.extend(every.map(|position| format!("Softmax, {position}, sections")));
    all.extend(["none", "rope"].map(|position| format!("StickBreaking, {position}, sections")));
    for (kv, softmax, stick) in [
        ("projected", &every[..], &["none", "part of rope", "rope"][..]),
        ("identity", &["none", "relative"], &["none"]),
        ("memory", &["none"], &[]),
        ("mixed values", &every, &["none", "part of rope", "rope"]),
    ] {
        all.extend(softmax.iter().map(|position| format!("{kv}, Softmax, {position}")));
        all.extend(stick.iter().map(|position| format!("{kv}, StickBreaking, {position}")));
        for rows in ["few", "many"] {
            all.extend(CHOICES.map(|choice| format!("{kv}, {rows}, {choice:?}")));
        }
        all.extend(["causal", "both ways"].map(|way| format!("{kv}, {way}")));
    }
    for rows in ["few", "many"] {
        all.extend(CHOICES.map(|choice| format!("shared queries, {rows}, {choice:?}")));
        all.push(format!("query bias, {rows}, shared"));
        all.extend(every.map(|position| format!("{position}, {rows}")));
    }
    for weighting in ["SoftmaxTopK", "SoftmaxAll", "SoftmaxAllRenormalised", "Sigmoid", "Constant"] {
        all.push(format!("mixed values, {weighting}"));
    }
    for bias in ["None", "Once", "OfExpert"] {
        all.push(format!("{bias} output bias"));
        all.extend(["none", "rope"].map(|position| format!("cut, {bias} bias, {position}")));
    }
    all.extend([true, false].map(|causal| format!("cut, {:?}", Scope::Sequence { causal })));
    let single = [
        "F32",
        "F16",
        "one key/value heads",
        "more key/value heads",
        "mlp, hidden bias",
        "a key/value head each",
        "tiled",
        "grouped",
        "grouped and tiled",
        "odd head size",
        "later steps",
        "long",
        "key/value bias",
        "memory bias",
        "empty memory",
        "long memory",
        "shared queries and mixed values",
        "routed queries and mixed values",
        "cut sequences of unequal lengths",
        "cut sequences of equal lengths",
        "a short cut",
        "cut, sections",
        "memory in sections",
    ];
    all.extend(single.map(str::to_owned));
    all
}

/// JetMoE's attention, small: a layer to be changed.
fn plain_spec() -> HeadMixtureSpec {
    HeadMixtureSpec {
        norm: NormSpec::before(NormKind::Rms, 24, 1e-6),
        router: RouterSpec::new(RouterNet::Linear, ExpertChoice::top_k(8, 2, Weighting::SoftmaxTopK)),
        query_share: 1,
        heads_per_expert: 2,
        kv_heads: 2,
        group: 1,
        head_dim: 8,
        kv: KvProjection::Projected,
        position: PositionEncoding::Rope { theta: 1e4, channels: 8 },
        kernel: AttentionKernel::Softmax,
    }
}

/// What a pass tells and lets be changed.
#[derive(Default)]
struct Hooked {
    /// The places it reached.
    places: Vec<(Sublayer, Place)>,
    /// Heads give nothing.
    silent: bool,
}

impl Hook for Hooked {
    fn reach(&mut self, recorder: &mut Recorder, site: &Site<'_>) {
        self.places.push((site.sublayer, site.place));
        if self.silent && site.place == Place::Attended {
            let Inside::Attention(AttentionSite { heads, .. }) = site.inside else { panic!("no attention") };
            let quads = site.step.tokens * heads.slots * heads.out_row() / 4;
            let src = &Buffer::new(recorder.gpu(), "test.zeros", 16 * u64::from(quads));
            let dst = &site.workspace.attended;
            Copy { src, dst, quads, each: 4, runs: false }.record(recorder);
            // The zeros live until they are read.
            recorder.submit();
        }
    }
}

/// A hook stands at every place, in the order of the work, and by itself changes neither a bit nor a count.
#[test]
fn a_hook_sees_each_place_and_costs_nothing() {
    let [attention, cross] = [Sublayer::Attention, Sublayer::Cross];
    let dense = HeadMixtureSpec { router: RouterSpec::none(), ..plain_spec() };
    let memory =
        HeadMixtureSpec { kv: KvProjection::Memory, position: PositionEncoding::None, ..plain_spec() };
    let [linear, .., by_queries, _] = routed_specs();
    let routed = &[Place::Routes, Place::Queries, Place::Attended, Place::Output][..];
    let waits = &[Place::Queries, Place::Routes, Place::Attended, Place::Output][..];
    for (spec, sublayer, order) in [
        (dense, attention, &routed[1..]),
        (linear, attention, routed),
        (by_queries, attention, waits),
        (memory, cross, routed),
    ] {
        for kernels in CHOICES {
            let steps: &[&[u32]] = &[&[7, 5], &[1, 1]];
            let drawn = Drawn { spec, use_: plain_use(kernels, steps) };
            let tensors = Tensors::new(&drawn.spec, &drawn.use_);
            let mut hook = Hooked::default();
            let with = run_layer_with(&drawn, &tensors, Some(&mut hook));
            let without = run_layer(&drawn, &tensors);
            let places: Vec<_> = order.iter().map(|&place| (sublayer, place)).collect();
            assert_eq!(hook.places, places.repeat(steps.len()));
            assert_eq!(with.1, without.1, "counts");
            let outs = |ran: &(Vec<Ran>, _)| ran.0.iter().map(|ran| ran.out.clone()).collect::<Vec<_>>();
            assert_eq!(outs(&with), outs(&without));
        }
    }
}

/// What a hook writes is what the next dispatch reads: heads that give nothing leave the residual stream as it was.
#[test]
fn an_edit_stands_where_the_work_goes_on() {
    for kernels in CHOICES {
        let drawn = Drawn {
            spec: plain_spec(),
            use_: Use { biases: Biases::default(), ..plain_use(kernels, &[&[7, 5], &[1, 1]]) },
        };
        let tensors = Tensors::new(&drawn.spec, &drawn.use_);
        let mut hook = Hooked { silent: true, ..Hooked::default() };
        let (ran, _) = run_layer_with(&drawn, &tensors, Some(&mut hook));
        for (sequence, ran) in (0..).zip(&ran) {
            let x = drawn.use_.x(sequence, drawn.spec.norm.width);
            assert_eq!(ran.out, x.iter().map(|&x| f64::from(x as f32)).collect::<Vec<_>>());
        }
    }
}

/// The same with other routers.
fn routed_specs() -> [HeadMixtureSpec; 4] {
    let mut specs = [plain_spec(); 4];
    let nets = [
        RouterNet::Linear,
        RouterNet::Mlp { hidden: 12, activation: Activation::Gelu },
        RouterNet::QueryNorm,
        RouterNet::Cosine { hidden: 10 },
    ];
    for (spec, net) in specs.iter_mut().zip(nets) {
        spec.router.net = net;
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
        sections: 1,
        routes_before: 0,
        scores_before: 0,
        causal: true,
        memory: vec![1],
        biases: Biases { output: OutputBiased::Once, ..Biases::default() },
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
        spec.router.choice.experts = 24;
        for steps in steps {
            let drawn = Drawn { spec, use_: plain_use(kernels, steps) };
            let mut tensors = Tensors::new(&drawn.spec, &drawn.use_);
            let (before, _) = run_layer(&drawn, &tensors);
            let chosen: BTreeSet<u32> =
                before.iter().flat_map(|ran| &ran.chosen[0].experts).copied().collect();
            let idle: Vec<u32> = (0..spec.experts()).filter(|expert| !chosen.contains(expert)).collect();
            assert!(idle.len() >= 8, "{idle:?}");
            let query_decides = spec.router.net == RouterNet::QueryNorm;
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
                let choice = &mut spec.router.choice;
                (choice.experts, choice.top_k) = (experts, top_k);
                let drawn = Drawn { spec, use_: plain_use(kernels, &steps) };
                let (_, counters) = run_layer(&drawn, &Tensors::new(&drawn.spec, &drawn.use_));

                let [width, head_dim, heads, kv_heads] =
                    [spec.norm.width, spec.head_dim, spec.heads_per_expert, spec.kv_heads].map(u64::from);
                let [tokens, experts, top_k] = [tokens, experts, top_k].map(u64::from);
                let projection = heads * head_dim * width;
                let (router, queries) = match spec.router.net {
                    RouterNet::None => unreachable!("routed"),
                    RouterNet::Cosine { hidden } => (u64::from(hidden) * (width + experts), top_k),
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

/// MoH's attention in a vision transformer: every head an expert with keys and values of its own, some of them shared.
fn moh_spec(top_k: u32) -> HeadMixtureSpec {
    let choice = ExpertChoice {
        shared: 2,
        scale: top_k as f32,
        shared_softmax: true,
        two_stage: true,
        ..ExpertChoice::top_k(10, top_k, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
    };
    HeadMixtureSpec {
        norm: NormSpec::before(NormKind::Layer, 40, 1e-6),
        router: RouterSpec::new(RouterNet::Linear, choice),
        heads_per_expert: 1,
        kv_heads: 10,
        position: PositionEncoding::None,
        ..plain_spec()
    }
}

/// SwitchHead: `heads` heads, each with `experts` output and value experts of which it uses `top_k`.
fn switch_spec(heads: u32, experts: u32, top_k: u32) -> HeadMixtureSpec {
    let choice =
        ExpertChoice { groups: heads, ..ExpertChoice::top_k(heads * experts, top_k, Weighting::Sigmoid) };
    let router = RouterSpec::new(RouterNet::Linear, choice);
    HeadMixtureSpec {
        router,
        query_share: experts,
        heads_per_expert: 1,
        kv_heads: heads,
        kv: KvProjection::MixedValues(router),
        ..plain_spec()
    }
}

/// A step of all tokens that see each other, and how many keys they see together.
const STEPS: [(&[u32], u64); 2] = [(&[3, 1], 10), (&[9, 4], 97)];

fn macs_of(spec: HeadMixtureSpec, kernels: KernelChoice, step: &[u32]) -> u64 {
    spec.check().unwrap();
    let drawn = Drawn { spec, use_: Use { causal: false, ..plain_use(kernels, &[step]) } };
    run_layer(&drawn, &Tensors::new(&drawn.spec, &drawn.use_)).1[0].macs
}

/// Keys and values are every token's; beyond them and the router, heads cost what the active ones cost, exactly.
#[test]
fn unselected_heads_are_neither_projected_nor_attended_nor_combined() {
    for (kernels, (step, keys)) in CHOICES.into_iter().flat_map(|choice| STEPS.map(|step| (choice, step))) {
        let tokens: u64 = step.iter().copied().map(u64::from).sum();
        let of_heads = |top_k| {
            let spec = moh_spec(top_k);
            let [width, dim] = [spec.norm.width, spec.head_dim].map(u64::from);
            // Ten scores and two for the stages; ten keys and ten values.
            let all = tokens * (12 * width + 2 * 10 * dim * width);
            let macs = macs_of(spec, kernels, step) - all;
            let active = u64::from(spec.active());
            assert_eq!(macs, active * (tokens * 2 * dim * width + 2 * keys * dim), "{kernels:?}, {top_k}");
            (macs, active)
        };
        let (all, heads) = of_heads(8);
        assert_eq!(heads, 10);
        for top_k in 1..8 {
            let (some, active) = of_heads(top_k);
            assert_eq!(some * heads, all * active, "{active} of {heads} heads");
        }
    }
}

/// Heads that share a query have all of it, once; of the output and value experts only the chosen ones cost.
#[test]
fn switched_heads_cost_as_many_experts_as_they_use() {
    for (kernels, (step, keys)) in CHOICES.into_iter().flat_map(|choice| STEPS.map(|step| (choice, step))) {
        let tokens: u64 = step.iter().copied().map(u64::from).sum();
        for (heads, experts) in [(2, 5), (4, 3)] {
            for top_k in 1..=experts {
                let spec = switch_spec(heads, experts, top_k);
                let [width, dim, heads, experts, top_k] =
                    [spec.norm.width, spec.head_dim, heads, experts, top_k].map(u64::from);
                let routers = 2 * heads * experts * width;
                let queries_and_keys = 2 * heads * dim * width;
                let of_experts = 2 * heads * top_k * dim * width;
                let attention = 2 * keys * heads * dim;
                let expected = tokens * (routers + queries_and_keys + of_experts) + attention;
                assert_eq!(macs_of(spec, kernels, step), expected, "{kernels:?}, {spec:?}");
            }
        }
    }
}

/// As for experts that no token chose, where whole heads are experts, and where only their outputs and values are.
#[test]
fn heads_that_no_token_chose_are_not_read() {
    for (kernels, step) in CHOICES.into_iter().flat_map(|choice| STEPS.map(|(step, _)| (choice, step))) {
        let mut wide = moh_spec(1);
        (wide.router.choice.experts, wide.kv_heads) = (40, 40);
        for spec in [wide, switch_spec(2, 20, 1)] {
            let drawn = Drawn { spec, use_: plain_use(kernels, &[step]) };
            let mut tensors = Tensors::new(&drawn.spec, &drawn.use_);
            let (before, _) = run_layer(&drawn, &tensors);
            for (i, router) in spec.routers().enumerate() {
                let chosen: BTreeSet<u32> =
                    before.iter().flat_map(|ran| &ran.chosen[i].experts).copied().collect();
                let idle: Vec<u32> =
                    (0..router.experts()).filter(|expert| !chosen.contains(expert)).collect();
                assert!(idle.len() >= 8, "{idle:?}");
                let spoil = |rows: &mut Vec<f64>| {
                    let size = rows.len() / router.experts() as usize;
                    idle.iter().for_each(|&e| rows[e as usize * size..][..size].fill(f64::NAN));
                };
                match i {
                    0 => {
                        spoil(&mut tensors.output);
                        if spec.query_share == 1 {
                            spoil(&mut tensors.query);
                        }
                    }
                    _ => spoil(&mut tensors.values),
                }
            }
            let (after, _) = run_layer(&drawn, &tensors);
            assert!(after == before, "{kernels:?}, {step:?}: idle experts mattered");
        }
    }
}

#[track_caller]
fn accepted(change: impl FnOnce(&mut HeadMixtureSpec)) {
    let mut spec = plain_spec();
    change(&mut spec);
    spec.check().unwrap();
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
fn routers_that_contradict_themselves_are_refused_by_name() {
    fn choice(spec: &mut HeadMixtureSpec) -> &mut ExpertChoice {
        &mut spec.router.choice
    }
    fn cut(spec: &mut HeadMixtureSpec) {
        spec.router.scope = Scope::Sequence { causal: true };
    }
    let mlp = RouterNet::Mlp { hidden: 4, activation: Activation::Gelu };
    let cosine = RouterNet::Cosine { hidden: 4 };

    refused(|spec| choice(spec).top_k = 9, "experts per token", "1 to 8");
    refused(|spec| choice(spec).top_k = 0, "experts per token", "1 to 8");
    refused(
        |spec| choice(spec).shared = 7,
        "experts per token",
        "1 to 1 (8 experts, 7 of them for every token",
    );
    refused(|spec| choice(spec).shared = 8, "experts per token", "0 to 0");
    refused(|spec| choice(spec).shared = 9, "experts per token", "9 of them");
    refused(|spec| (choice(spec).groups, choice(spec).top_k) = (4, 3), "experts per token", "1 to 2");
    refused(|spec| choice(spec).experts = 0, "experts", "1 to 256");
    refused(|spec| choice(spec).experts = 257, "experts", "1 to 256");
    refused(|spec| choice(spec).groups = 0, "groups of experts", "divisor of the 8");
    refused(|spec| choice(spec).groups = 3, "groups of experts", "divisor of the 8");
    refused(
        |spec| (choice(spec).groups, choice(spec).shared) = (2, 1),
        "groups of experts",
        "divisor of the 7",
    );
    // Experts that nobody chooses among, and several that everybody uses.
    refused(|spec| spec.router.net = RouterNet::None, "router", "choose among experts");
    let all = |spec: &mut HeadMixtureSpec| (spec.router.net, choice(spec).top_k) = (RouterNet::None, 8);
    refused(all, "router", "choose among experts");

    refused(|spec| choice(spec).shared_softmax = true, "shared experts", "some");
    refused(|spec| choice(spec).two_stage = true, "experts", "some of both");
    let alone = |spec: &mut HeadMixtureSpec| {
        *choice(spec) = ExpertChoice { shared: 8, top_k: 0, two_stage: true, ..*choice(spec) };
    };
    refused(alone, "experts", "some of both");
    for net in [cosine, RouterNet::QueryNorm] {
        let scored = |spec: &mut HeadMixtureSpec| {
            spec.router.net = net;
            (choice(spec).shared, choice(spec).shared_softmax) = (1, true);
        };
        refused(scored, "router", "score shared experts");
        let staged = |spec: &mut HeadMixtureSpec| {
            spec.router.net = net;
            (choice(spec).shared, choice(spec).two_stage) = (1, true);
        };
        refused(staged, "router", "score shared experts");
        refused(|spec| (cut(spec), spec.router.net = net).0, "router", "cut whole sequences");
    }
    refused(|spec| (cut(spec), spec.router.net = mlp).0, "router", "cut whole sequences");
    refused(|spec| (cut(spec), choice(spec).shared = 1).0, "router", "cut whole sequences");
    refused(|spec| (cut(spec), choice(spec).groups = 2).0, "router", "cut whole sequences");
}

#[test]
fn layers_that_contradict_themselves_are_refused_by_name() {
    fn identity(spec: &mut HeadMixtureSpec, kv_heads: u32, head_dim: u32, width: u32) {
        spec.position = PositionEncoding::None;
        spec.kv = KvProjection::Identity;
        (spec.kv_heads, spec.head_dim, spec.norm.width) = (kv_heads, head_dim, width);
    }
    let stick = |spec: &mut HeadMixtureSpec| spec.kernel = AttentionKernel::StickBreaking;
    let rope = |channels| PositionEncoding::Rope { theta: 1e4, channels };
    let relative = |clip| PositionEncoding::Relative { clip };

    refused(|spec| spec.router.net = RouterNet::QueryNorm, "heads per expert", "1");
    refused(|spec| spec.kv_heads = 3, "query heads", "3 key/value heads in groups of 1");
    refused(|spec| spec.group = 3, "query heads", "2 key/value heads in groups of 3");
    refused(|spec| spec.kv_heads = 0, "query heads", "0 key/value heads");
    refused(|spec| spec.group = 0, "query heads", "groups of 0");
    refused(|spec| spec.heads_per_expert = 0, "query heads", "divide");
    // More key/value heads than anyone reads.
    refused(|spec| spec.kv_heads = 32, "query heads", "32 key/value heads");
    refused(|spec| (spec.router, spec.group) = (RouterSpec::none(), 2), "query heads", "in groups of 2");

    refused(|spec| spec.head_dim = 6, "head size", "a multiple of 4");
    refused(|spec| spec.head_dim = 0, "head size", "1 to 128");
    refused(|spec| spec.head_dim = 132, "head size", "1 to 128");
    refused(|spec| (stick(spec), spec.head_dim = 1028).0, "head size", "1 to 1024");
    for channels in [0, 3, 10] {
        refused(|spec| spec.position = rope(channels), "rotated channels", "from 2 to the head size 8");
    }
    refused(|spec| spec.position = relative(0), "relative positions", "1 to 65536");
    refused(|spec| spec.position = relative(65_537), "relative positions", "1 to 65536");
    refused(|spec| (stick(spec), spec.position = relative(3)).0, "positions", "stick-breaking");

    refused(|spec| identity(spec, 2, 8, 24), "key/value width", "24");
    refused(|spec| identity(spec, 2, 6, 12), "head size", "a multiple of 4");
    refused(|spec| (identity(spec, 2, 8, 16), spec.position = rope(8)).0, "positions", "none");
    let memory = |spec: &mut HeadMixtureSpec| spec.kv = KvProjection::Memory;
    refused(memory, "positions", "another stack's");
    refused(|spec| (memory(spec), spec.position = relative(3)).0, "positions", "another stack's");
    let stick_memory =
        |spec: &mut HeadMixtureSpec| (memory(spec), stick(spec), spec.position = PositionEncoding::None).0;
    refused(stick_memory, "attention", "no newest");

    let mut values = RouterSpec::new(
        RouterNet::Linear,
        ExpertChoice { groups: 2, ..ExpertChoice::top_k(6, 1, Weighting::Sigmoid) },
    );
    let mixed = |spec: &mut HeadMixtureSpec, router| spec.kv = KvProjection::MixedValues(router);
    accepted(|spec| mixed(spec, values));
    refused(|spec| (mixed(spec, values), spec.head_dim = 12).0, "head size", "a multiple of 8");
    values.choice.top_k = 4;
    refused(|spec| mixed(spec, values), "experts per token", "1 to 3");
    values.choice = ExpertChoice { groups: 1, top_k: 1, ..values.choice };
    refused(|spec| mixed(spec, values), "value router", "a group for each of 2 heads");
    values.choice = ExpertChoice { groups: 2, shared: 2, ..values.choice };
    refused(|spec| mixed(spec, values), "value router", "a group for each of 2 heads");
    values.choice.shared = 0;
    let net = RouterSpec { net: RouterNet::Cosine { hidden: 4 }, ..values };
    refused(|spec| mixed(spec, net), "value router", "a linear router");
    let one = ExpertChoice { groups: 1, ..values.choice };
    let cut = RouterSpec { scope: Scope::Sequence { causal: true }, choice: one, ..values };
    let of_one_head = |spec: &mut HeadMixtureSpec| (mixed(spec, cut), spec.kv_heads = 1).0;
    refused(of_one_head, "value router", "a linear router");
}

#[test]
fn shared_queries_and_cuts_that_contradict_themselves_are_refused_by_name() {
    fn shares(spec: &mut HeadMixtureSpec) {
        (spec.query_share, spec.router.choice.groups, spec.heads_per_expert) = (2, 4, 1);
    }
    let name = "experts that share a query";
    accepted(shares);
    refused(|spec| spec.query_share = 0, name, "at least 1");
    refused(|spec| spec.query_share = 2, name, "1 groups of 8 experts");
    refused(|spec| (shares(spec), spec.query_share = 4).0, name, "4 groups of 8 experts");
    let beside_shared = |spec: &mut HeadMixtureSpec| {
        shares(spec);
        spec.router.choice = ExpertChoice { experts: 12, shared: 4, ..spec.router.choice };
    };
    refused(beside_shared, name, "4 shared");
    refused(|spec| (shares(spec), spec.heads_per_expert = 2).0, "expert that shares its query", "one head");
    let by_length = |spec: &mut HeadMixtureSpec| (shares(spec), spec.router.net = RouterNet::QueryNorm).0;
    refused(by_length, "expert that shares its query", "routed by the input");
    refused(|spec| (shares(spec), spec.head_dim = 12).0, "head size", "a multiple of 8");
    let relative = PositionEncoding::Relative { clip: 3 };
    refused(|spec| (shares(spec), spec.position = relative).0, "positions", "share a query");

    fn cuts(spec: &mut HeadMixtureSpec) {
        spec.router.scope = Scope::Sequence { causal: true };
        (spec.heads_per_expert, spec.kv_heads) = (1, 8);
    }
    let each = "a key/value head each";
    accepted(cuts);
    refused(|spec| (cuts(spec), spec.kv_heads = 4).0, "heads", each);
    refused(|spec| (cuts(spec), spec.heads_per_expert = 2).0, "heads", each);
    refused(|spec| (cuts(spec), (spec.kv_heads, spec.group) = (4, 2)).0, "heads", each);
    let remembers = |spec: &mut HeadMixtureSpec| (cuts(spec), spec.kv = KvProjection::Memory).0;
    refused(remembers, "heads", each);
    let stick = |spec: &mut HeadMixtureSpec| (cuts(spec), spec.kernel = AttentionKernel::StickBreaking).0;
    refused(stick, "attention", "softmax");
    refused(|spec| (cuts(spec), spec.position = relative).0, "attention", "softmax");
}

#[test]
fn an_mlp_has_no_queries_to_route_by() {
    let HeadMixtureSpec { norm, router, .. } = plain_spec();
    let activation = MlpActivation::SwiGlu;
    let mut mlp = ExpertMlpSpec { norm, router, hidden: 8, activation };
    mlp.check().unwrap();
    mlp.router.net = RouterNet::QueryNorm;
    let message = mlp.check().expect_err("contradicts itself").to_string();
    assert!(message.starts_with("router: found QueryNorm of Token"), "'{message}'");
    mlp.router = RouterSpec { scope: Scope::Sequence { causal: true }, ..router };
    let message = mlp.check().expect_err("contradicts itself").to_string();
    assert!(message.starts_with("router: found Linear of Sequence"), "'{message}'");
}
