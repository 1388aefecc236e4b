//! The embedding gather.

/// y\[t\] = table\[ids\[t\]\]; the table is `[vocabulary, width]`.
pub fn embedding(table: &[f64], width: usize, ids: &[u32]) -> Vec<f64> {
    ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
}
