//! Families as instances of the head-mixture layer: JetMoE against its own reference, BAM against its
//! modules, SwitchHead against its formula.

use super::head_mixture::{TOKENS, WIDTH, dense, run, x};
use crate::{
    assert_same, noise,
    reference::{
        dot,
        head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions},
        jetmoe::{JetMoe, linear},
        matvec,
        moh_llama::{Heads, add, attention},
        rms_norm::rms_norm,
        router::{Net, Router, Select, Weight},
    },
    root,
};

#[test]
fn jetmoe_attends_by_the_same_formula() {
    let mut model = JetMoe::load(&root().join("tests/fixtures/jetmoe_tiny"));
    model.layers.truncate(1);
    model.layers[0].mlp.output.fill(0.0);
    model.layers[0].mlp.bias.fill(0.0);
    let ids = [1, 7, 42, 99, 3, 58];
    let expected = model.forward(&mut model.cache(ids.len()), &ids);

    let part = &model.layers[0].attention;
    let (keys, values) = model.layers[0].kv.split_at(model.layers[0].kv.len() / 2);
    let experts = part.router.len() / model.width;
    let layer = HeadMixture {
        width: model.width,
        heads: model.kv_heads,
        head_dim: model.head_dim,
        kv_heads: model.kv_heads,
        group: 1,
        query_share: 1,
        router: Router {
            experts,
            shared: 0,
            groups: 1,
            net: Net::Linear { weight: part.router.clone(), bias: None },
            select: Select::TopK(model.top_k),
            weight: Weight::SoftmaxKept,
            shared_weight: None,
            two_stage: None,
        },
        query: part.input.clone(),
        query_bias: None,
        kv: KeysValues::Projected {
            keys: keys.to_vec(),
            key_bias: None,
            values: values.to_vec(),
            value_bias: None,
        },
        positions: Positions::Rope { theta: model.theta, fraction: 1.0 },
        kernel: Kernel::Softmax,
        causal: true,
        padding_gates_zero: false,
        output: part.output.clone(),
        output_bias: Some(part.bias.clone()),
    };
    let x: Vec<f64> = ids
        .iter()
        .flat_map(|&id| &model.embedding[id as usize * model.width..][..model.width])
        .copied()
        .collect();
    let normed = rms_norm(&x, &part.norm, 1e-6);
    let output = layer.forward(&Input { batch: 1, x: &normed, ..Input::default() });
    assert_eq!(output.routing.routes, expected.routes[0].attention);
    let last = rms_norm(&add(&x, &output.y), &model.norm, model.epsilon);
    assert_same(&linear(&model.embedding, model.width, &last), &expected.logits);
}

/// N modules with 4 heads of 4 channels on 2 key heads, causal and rotary.
fn modules(count: u64) -> Vec<HeadMixture> {
    let module = |i| {
        let matrix = |part: u64, rows: usize| noise(200 + 10 * i + part, rows * WIDTH);
        let matrices = [matrix(0, 16), matrix(1, 8), matrix(2, 8), matrix(3, 16)];
        attention(Heads { all: 4, shared: 4, routed: 0 }, 4, 10000.0, matrices)
    };
    (0..count).map(module).collect()
}

/// BAM's mixture of whole modules, y = Σ_i softmax(Wr·x)_i · module_i(x), with keys and values of each.
fn mixture(modules: &[HeadMixture], router: &[f64]) -> HeadMixture {
    let concat =
        |part: fn(&HeadMixture) -> &[f64]| modules.iter().flat_map(part).copied().collect::<Vec<f64>>();
    let keys_values = |layer: &HeadMixture| match &layer.kv {
        KeysValues::Projected { keys, values, .. } => (keys.clone(), values.clone()),
        _ => unreachable!(),
    };
    let (keys, values): (Vec<_>, Vec<_>) = modules.iter().map(keys_values).unzip();
    // An expert's output is [D, H·d]: its heads side by side again.
    let output = |layer: &HeadMixture| -> Vec<f64> {
        let row = |row: usize| {
            layer.output.chunks_exact(4 * WIDTH).flat_map(move |head| head[4 * row..][..4].to_vec())
        };
        (0..WIDTH).flat_map(row).collect()
    };
    let dense = modules[0].clone();
    HeadMixture {
        heads: 4,
        kv_heads: 2 * modules.len(),
        group: 2,
        router: Router {
            experts: modules.len(),
            shared: 0,
            net: Net::Linear { weight: router.to_vec(), bias: None },
            select: Select::All,
            weight: Weight::SoftmaxAll,
            ..dense.router.clone()
        },
        query: concat(|layer| &layer.query),
        kv: KeysValues::Projected {
            keys: keys.concat(),
            key_bias: None,
            values: values.concat(),
            value_bias: None,
        },
        output: modules.iter().flat_map(output).collect(),
        ..dense
    }
}

#[test]
fn bam_of_equal_modules_is_the_module() {
    let module = modules(1).remove(0);
    let (x, router) = (x(), noise(300, 3 * WIDTH));
    let expected = run(&module, &x);
    let equal = mixture(&vec![module.clone(); 3], &router);
    assert_same(&run(&equal, &x), &expected);
    let shared = HeadMixture { kv_heads: 2, kv: module.kv.clone(), ..equal };
    assert_same(&run(&shared, &x), &expected);
}

#[test]
fn bam_is_the_weighted_sum_of_its_modules() {
    let (modules, x, router) = (modules(3), x(), noise(300, 3 * WIDTH));
    let bam = mixture(&modules, &router);
    let output = bam.forward(&Input { batch: 2, x: &x, ..Input::default() });
    let sum_of = |modules: &[HeadMixture]| {
        let mut expected = vec![0.0; x.len()];
        for (i, module) in modules.iter().enumerate() {
            for (place, y) in run(module, &x).iter().enumerate() {
                expected[place] += output.routing.routes.gates[place / WIDTH * 3 + i] * y;
            }
        }
        expected
    };
    assert_same(&output.y, &sum_of(&modules));

    // Shared keys and values are those of every module.
    let shared = HeadMixture { kv_heads: 2, kv: modules[1].kv.clone(), ..bam.clone() };
    let sharing: Vec<HeadMixture> =
        modules.iter().map(|module| HeadMixture { kv: modules[1].kv.clone(), ..module.clone() }).collect();
    assert_same(&run(&shared, &x), &sum_of(&sharing));
}

/// SwitchHead with 2 heads, E experts each for values and outputs, of which k stay.
fn switch_head(experts: usize, top_k: usize) -> HeadMixture {
    let (heads, d) = (2, 4);
    let router = |seed| Router {
        experts: heads * experts,
        shared: 0,
        groups: heads,
        net: Net::Linear { weight: noise(seed, heads * experts * WIDTH), bias: None },
        select: Select::TopK(top_k),
        weight: Weight::Sigmoid,
        shared_weight: None,
        two_stage: None,
    };
    HeadMixture {
        group: experts,
        query_share: experts,
        router: router(401),
        query: noise(400, heads * d * WIDTH),
        kv: KeysValues::MixedValues {
            keys: noise(402, heads * d * WIDTH),
            router: router(403),
            values: noise(404, heads * experts * d * WIDTH),
        },
        output: noise(405, heads * experts * WIDTH * d),
        causal: true,
        ..dense(0, heads * experts, 1, heads, 1)
    }
}

#[test]
fn switch_head_mixes_values_and_outputs_inside_each_head() {
    let (heads, experts, top_k, d) = (2, 3, 2, 4);
    let layer = switch_head(experts, top_k);
    let KeysValues::MixedValues { keys, router, values } = &layer.kv else { unreachable!() };
    let net = |router: &Router| match &router.net {
        Net::Linear { weight, .. } => weight.clone(),
        _ => unreachable!(),
    };
    let (value_net, output_net) = (net(router), net(&layer.router));
    let x = &x()[..TOKENS * WIDTH];
    let row = |t: usize| &x[t * WIDTH..][..WIDTH];
    // The gates of head h's experts: the sigmoid of the k best, 0 for the others.
    let gates = |net: &[f64], x: &[f64], h: usize| -> Vec<f64> {
        let s: Vec<f64> = matvec(&net[h * experts * WIDTH..][..experts * WIDTH], x);
        let kept = |e: usize| s.iter().filter(|&&other| other > s[e]).count() < top_k;
        (0..experts).map(|e| if kept(e) { 1.0 / (1.0 + (-s[e]).exp()) } else { 0.0 }).collect()
    };
    let of_head = |weight: &[f64], h: usize| weight[h * d * WIDTH..][..d * WIDTH].to_vec();

    let mut expected = Vec::new();
    for t in 0..TOKENS {
        let mut y = vec![0.0; WIDTH];
        for h in 0..heads {
            let q = matvec(&of_head(&layer.query, h), row(t));
            let e: Vec<f64> =
                (0..=t).map(|i| (dot(&q, &matvec(&of_head(keys, h), row(i))) / 2.0).exp()).collect();
            let mut o = vec![0.0; d];
            for i in 0..=t {
                for (expert, gate) in gates(&value_net, row(i), h).into_iter().enumerate() {
                    let v = matvec(&of_head(values, h * experts + expert), row(i));
                    o.iter_mut().zip(v).for_each(|(o, v)| *o += e[i] / e.iter().sum::<f64>() * gate * v);
                }
            }
            for (expert, gate) in gates(&output_net, row(t), h).into_iter().enumerate() {
                let out = matvec(&of_head(&layer.output, h * experts + expert), &o);
                y.iter_mut().zip(out).for_each(|(y, out)| *y += gate * out);
            }
        }
        expected.extend(y);
    }
    let output = layer.forward(&Input { batch: 1, x, ..Input::default() });
    assert_same(&output.y, &expected);
    assert_eq!(output.routing.routes.top_k, heads * top_k);
    assert_eq!(output.value_routing.unwrap().routes.experts.len(), TOKENS * heads * top_k);
}

#[test]
fn switch_head_with_gates_of_1_and_one_expert_is_dense() {
    let mut layer = switch_head(1, 1);
    layer.router.weight = Weight::Const(1.0);
    let KeysValues::MixedValues { keys, router, values } = &mut layer.kv else { unreachable!() };
    router.weight = Weight::Const(1.0);
    let kv = KeysValues::Projected {
        keys: keys.clone(),
        key_bias: None,
        values: values.clone(),
        value_bias: None,
    };
    assert_same(&run(&layer, &x()), &run(&HeadMixture { kv, ..layer.clone() }, &x()));
}
