//! What the kernels must compute, in f64: one small file per kernel, each the formula and nothing else.
//!
//! Everything is a flat row-major slice with its shape in the comment. Ids, positions and offsets are `u32`,
//! as they are on the GPU. A shape that does not fit panics: these functions are called by tests and by headwise's selftest, whose shapes are fixed.

pub mod activations;
pub mod adjust_logits;
pub mod attention_rows;
pub mod blocks;
pub mod checkpoints;
pub mod combine;
pub mod decoder_families;
pub mod edits;
pub mod embedding;
pub mod folder;
pub mod group;
pub mod head_mixture;
pub mod jetmoe;
pub mod layer_norm;
pub mod losses;
pub mod moa;
pub mod moh_llama;
pub mod molm;
pub mod noise;
pub mod norm_router;
pub mod quantize;
pub mod rms_norm;
pub mod rope_cache;
pub mod rounding;
pub mod routed_linear;
pub mod router;
pub mod row_attention;
pub mod sample;
pub mod selective_heads;
pub mod swiglu;
pub mod token_logprob;
pub mod vit;

/// Σ a·b.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "dot: lengths");
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// W·x for W `[rows, x.len()]`.
pub fn matvec(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// exp(x − max x) / Σ exp(x − max x).
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The f32 values of a GPU buffer as the f64 values an oracle takes.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// max |a − b|; infinite where either side is not a number, so that a NaN never passes a tolerance.
pub fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "max_difference: lengths");
    let differences = a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    differences.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max)
}
