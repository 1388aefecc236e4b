// Products of 8-bit integers, four to a word, of quantised weights and of inputs that are rounded here. Needs
// weights.wgsl, in Q8 or Q4.

//!needs var weights, const WEIGHT_FORMAT

// Inputs as codes of one scale:  x ≈ scale · code,  |code| ≤ 127, each off by half a scale at the most.
struct Codes {
    lo: u32,
    hi: u32,
}

fn inverse_of(most: f32) -> f32 {
    // Below that the inverse overflows.
    return select(0.0, 1.0 / most, most > 1e-37);
}

// The scale of codes of inputs that are `most` at the most.
fn scale_of(most: f32) -> f32 {
    return most / 127.0;
}

fn most_of(lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    let most = max(abs(lo), abs(hi));
    return max(max(most.x, most.y), max(most.z, most.w));
}

fn codes_of(lo: vec4<f32>, hi: vec4<f32>, inverse: f32) -> Codes {
    return Codes(pack4x8snorm(lo * inverse), pack4x8snorm(hi * inverse));
}

// Weights 8·block … 8·block + 7 of row `row` of the quad at vec4 `base`, without their scale.
fn row_packed(base: u32, row: u32, block: u32) -> Codes {
    if WEIGHT_FORMAT == Q8 {
        let pair = weights[base + 4u * (block / 2u) + row];
        let words = select(pair.xy, pair.zw, block % 2u == 1u);
        return Codes(words.x, words.y);
    }
    let word = weights[base + 4u * (block / 4u) + row][block % 4u];
    return Codes(word & 0x0f0f0f0fu, (word >> 4u) & 0x0f0f0f0fu);
}

// What rounding took from the inputs' sum `sum`, times the middle of Q4's codes: it is added to the products, as if codes
// were from -8 to 7, so that rounding errors meet smaller weights.
fn middle_of(sum: f32, scale: f32, x: Codes) -> f32 {
    return select(0.0, 8.0 * (sum - scale * f32(dot_codes(x, Codes(0x01010101u, 0x01010101u)))), WEIGHT_FORMAT == Q4);
}

fn sum_of(lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    return dot(lo + hi, vec4<f32>(1.0));
}

fn dot_codes(x: Codes, w: Codes) -> i32 {
    return dot4I8Packed(x.lo, w.lo) + dot4I8Packed(x.hi, w.hi);
}
