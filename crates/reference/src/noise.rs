//! Numbers that are the same in every run.

/// A well-mixed number for each seed and index (the finaliser of SplitMix64).
pub fn hash(seed: u64, index: usize) -> u64 {
    let mut z =
        seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Reproducible values in [−1, 1), each exact in f32.
pub fn noise(seed: u64, count: usize) -> Vec<f64> {
    (0..count).map(|i| (hash(seed, i) >> 40) as f64 / f64::from(1 << 23) - 1.0).collect()
}
