// Rows whose keys are split over workgroups: what each split leaves in scratch, for attention_merge.
//
//     sums [tokens, slots · heads, splits, value_quads], then (m, l, 0, 0) [tokens, slots · heads, splits]
//
// A split that sees nothing is all zeros but for its m, the lowest there is. Of stick-breaking the second part is (r, 0, 0, 0), the
// logarithm of what is left of the split's stick.

//!needs var params

// The place of a split of a query head of a token.
fn split_row(token: u32, index: u32, split: u32) -> u32 {
    return (token * params.slots * params.heads + index) * params.splits + split;
}

// The vec4 of a split's (m, l), or of its r.
fn split_stats(row: u32) -> u32 {
    return params.tokens * params.slots * params.heads * params.splits * params.value_quads + row;
}
