//! The auxiliary losses and statistics of a router, from captured choices and scores, against `crates/reference/src/losses.rs`.

use headwise::{Choice, RouterShape, RouterUse};

use crate::reference::{
    checkpoints::uniform,
    losses,
    router::{Net, Router, Select, Weight},
};

const WIDTH: usize = 6;

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-5, "{what}: {found}, not {expected}");
}

#[test]
fn statistics_of_random_routers_are_the_formulas() {
    for (case, (experts, shared, top_k)) in
        [(7, 0, 3), (8, 2, 4), (5, 0, 1), (4, 0, 4), (2, 1, 1)].into_iter().enumerate()
    {
        let routed = experts - shared;
        let noise = |seed: u64, count: usize, size: f64| -> Vec<f64> {
            uniform(seed, case).take(count).map(|a| size * a).collect()
        };
        let router = Router {
            experts,
            shared,
            groups: 1,
            net: Net::Linear { weight: noise(1, routed * WIDTH, 4.0), bias: None },
            select: Select::TopK(top_k),
            weight: Weight::Renormalised { epsilon: 1e-6, scale: 1.0 },
            shared_weight: None,
            two_stage: None,
        };
        let routing = router.route(&noise(2, 50 * WIDTH, 2.0), WIDTH, |_, _| unreachable!("a linear router"));
        let (scores, routes) = (&routing.scores, &routing.routes);
        let slots = shared + top_k;
        let pairs = routes.experts.iter().zip(&routes.gates);
        let choices: Vec<Choice> = pairs.map(|(&expert, &gate)| Choice::new(expert, gate as f32)).collect();
        let choices: Vec<Vec<Choice>> = choices.chunks(slots).map(<[_]>::to_vec).collect();
        let narrow: Vec<f32> = scores.iter().map(|&score| score as f32).collect();
        let shape = RouterShape::new(experts, top_k).shared(shared);
        let found = RouterUse::of(shape, &choices, &narrow).unwrap().unwrap();

        let p = losses::probabilities(scores, routed, None);
        let mass = losses::probability_mass(&p, routed);
        let load = losses::load(routes, experts);
        let importance = losses::importance(routes, experts);
        for (expert, share) in losses::shares(&load).into_iter().enumerate() {
            close(found.load[expert], share, "load");
        }
        for (expert, share) in losses::shares(&importance).into_iter().enumerate() {
            close(found.importance[expert], share, "importance");
        }
        close(found.entropy, losses::entropy(&load), "entropy");
        close(found.importance_cv, losses::importance_cv(&importance), "importance CV");
        close(found.switch_balance, losses::switch_balance(&mass, &load[shared..]), "balance");
        close(found.router_z, losses::router_z(scores, routed), "z");
        close(found.mutual_information, losses::mutual_information(&p, routed), "mutual information");
        close(found.token_entropy, losses::token_entropy(&p, routed), "token entropy");
        // MoH's balance loss is the same, times the heads that are kept.
        let moh = losses::moh_balance(&p, routes, shared, experts);
        close(top_k as f64 * found.switch_balance, moh, "MoH's balance");
        match found.drop_margin {
            Some(margin) => {
                let (smallest, mean) = losses::drop_margin(routes);
                close(margin.smallest, smallest, "smallest margin");
                close(margin.mean, mean, "mean margin");
            }
            None => assert_eq!(routed, top_k, "nothing is dropped only if all are kept"),
        }
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let shape = RouterShape::new(4, 2).shared(1);
    let choice = vec![Choice::new(0, 1.0)];
    assert!(RouterUse::of(shape, std::slice::from_ref(&choice), &[0.0; 3]).unwrap().is_some());
    assert!(RouterUse::of(shape, &[], &[]).unwrap().is_none());
    for (shape, scores) in [
        (shape, 4),
        (shape.groups(2), 3),
        (shape.groups(0), 3),
        (RouterShape::new(4, 4).shared(1), 3),
        (RouterShape::new(4, 0).shared(1), 3),
        (shape.shared(9), 0),
    ] {
        let refused = RouterUse::of(shape, std::slice::from_ref(&choice), &vec![0.0; scores]);
        assert!(refused.unwrap_err().to_string().starts_with("router s"), "{shape:?}");
    }
}
