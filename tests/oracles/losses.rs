//! Auxiliary losses and routing statistics. MoA's own values are compared in `mixture_models`.

use crate::{
    assert_same, noise,
    reference::{
        losses::{
            drop_margin, entropy, importance, importance_cv, load, moh_balance, mutual_information,
            probabilities, probability_mass, router_z, switch_balance, token_entropy,
        },
        norm_router::Routes,
    },
};

/// Two tokens, which keep two of three experts.
fn routes() -> Routes {
    Routes {
        top_k: 2,
        experts: vec![0, 2, 2, 1],
        gates: vec![0.5, 0.25, 0.75, 0.0],
        margins: vec![0.5, f64::INFINITY],
    }
}

#[test]
fn sums_over_the_tokens_of_an_expert() {
    assert_same(&load(&routes(), 3), &[1.0, 0.0, 2.0]); // a gate of 0 is no load
    assert_same(&importance(&routes(), 3), &[0.5, 0.0, 1.0]);
    assert_same(&probability_mass(&[0.1, 0.2, 0.7, 0.5, 0.5, 0.0], 3), &[0.6, 0.7, 0.7]);
    let p = probabilities(&[0.0, 3f64.ln(), 0.0, 0.0], 2, Some(&[false, true]));
    assert_same(&p, &[0.25, 0.75, 0.0, 0.0]);
}

#[test]
fn balance_losses_of_known_loads() {
    assert_same(&[importance_cv(&[2.0, 2.0, 2.0])], &[0.0]);
    assert_same(&[importance_cv(&[3.0])], &[0.0]);
    // Shares 1 and 0: mean 1/2, unbiased variance 1/2.
    assert_same(&[importance_cv(&[4.0, 0.0])], &[0.5 / (0.25 + 1e-10)]);
    assert_same(&[switch_balance(&[1.0; 4], &[7.0; 4])], &[1.0]);
    assert_same(&[switch_balance(&[1.0, 0.0], &[5.0, 0.0])], &[2.0]);
    assert_same(&[switch_balance(&[0.3, 0.1], &[1.0, 3.0])], &[2.0 * (0.75 * 0.25 + 0.25 * 0.75)]);
}

#[test]
fn z_loss_does_not_overflow() {
    assert_same(&[router_z(&[0.0, 0.0], 2)], &[2f64.ln().powi(2)]);
    assert_same(&[router_z(&[1000.0, -1000.0], 2)], &[1e6]);
    assert_same(&[router_z(&[2.0, 4.0], 1)], &[10.0]);
}

#[test]
fn mutual_information_is_that_of_token_and_expert() {
    let near = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-7, "{value} {expected}");
    near(mutual_information(&[1.0, 0.0, 0.0, 1.0], 2), -2f64.ln()); // the token tells the expert
    near(mutual_information(&[0.3, 0.7, 0.3, 0.7], 2), 0.0); // the token tells nothing
    near(mutual_information(&[1.0, 0.0, 1.0, 0.0], 2), 0.0);
    assert!(mutual_information(&probabilities(&noise(1, 60), 6, None), 6) < 0.0);
}

#[test]
fn moh_balance_counts_routed_heads_alone() {
    // Heads 0 and 1 are shared; each of the routed 2, 3, 4 has p = 1/3, and one is kept at every token.
    let routes = Routes {
        top_k: 3,
        experts: vec![0, 1, 2, 0, 1, 2, 0, 1, 4],
        gates: vec![1.0; 9],
        margins: vec![1.0; 3],
    };
    assert_same(&[moh_balance(&[1.0 / 3.0; 9], &routes, 2, 5)], &[1.0]);
    let p = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    assert_same(&[moh_balance(&p, &routes, 2, 5)], &[3.0 * (4.0 / 9.0 + 1.0 / 9.0)]);
}

#[test]
fn statistics_of_known_routes() {
    assert_same(&[entropy(&[2.0; 8]), entropy(&[5.0, 0.0])], &[8f64.ln(), 0.0]);
    assert_same(&[token_entropy(&[0.5, 0.5, 1.0, 0.0], 2)], &[2f64.ln() / 2.0]);
    assert_eq!(drop_margin(&routes()), (0.5, 0.5));
    let undropped = Routes { margins: vec![f64::INFINITY; 2], ..routes() };
    assert_eq!(drop_margin(&undropped), (f64::INFINITY, f64::INFINITY));
}
