//! How likely a given token is at each row of logits.

/// ln softmax(row)\[target\] = x_t − max − ln Σ exp(x − max), in nats; `[rows]` for logits `[rows, vocabulary]`.
pub fn token_logprob(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let rows = logits.chunks_exact(logits.len() / targets.len());
    rows.zip(targets)
        .map(|(row, &target)| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            row[target as usize] - max - sum.ln()
        })
        .collect()
}
