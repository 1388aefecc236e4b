// log(1 + exp(x)) without overflow. Small e keep their precision by the series: thousands of small shares add up.
fn softplus(x: f32) -> f32 {
    let e = exp(-abs(x));
    let series = e * (1.0 - e * (0.5 - e * (0.33333333 - e * (0.25 - e * 0.2))));
    return max(x, 0.0) + select(log(1.0 + e), series, e < 0.1);
}
