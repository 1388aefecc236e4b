// Weights in storage. Needs `weights: array<vec4<u32>>` and `params.in_blocks` in scope: a row has
// 8·in_blocks weights in `row_vec4s()` whole vec4s. Four rows make a quad, and their vec4s alternate: vec4 v of a
// quad's row i is vec4 4·v + i of the quad. So a lane that computes four outputs reads one stream. Of the scales it is
// the words that alternate: a vec4 has one of each row.
//
// F32, F16   the weights in order
// Q8         groups of 32: 2 vec4s of signed bytes each; then the scales, two f16 a word.   w = scale · q
// Q4         groups of 32: 1 vec4 each, whose word j has inputs 8j … 8j + 3 of the group in the low halves of its
//            bytes and 8j + 4 … 8j + 7 in the high ones; then a word for each group, scale and minimum in f16.
//            w = scale · q + minimum
//
// Scales fill whole vec4s, with zeros at the end. Rows of Q8 and Q4 are whole groups: in_blocks is a multiple of 4.

//!needs var params, var weights

const F32: u32 = 0u;
const F16: u32 = 1u;
const Q8: u32 = 2u;
const Q4: u32 = 3u;
override WEIGHT_FORMAT: u32 = F32;

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

// The vec4s of a row.
fn row_vec4s() -> u32 {
    let groups = params.in_blocks / 4u;
    switch WEIGHT_FORMAT {
        case F16: { return params.in_blocks; }
        case Q8: { return 2u * groups + (groups + 7u) / 8u; }
        case Q4: { return groups + (groups + 3u) / 4u; }
        default: { return 2u * params.in_blocks; }
    }
}

// Four signed bytes.
fn q8_unpack(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The low and the high halves of four bytes.
fn q4_low(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}

fn q4_high(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(4u, 12u, 20u, 28u)) & vec4<u32>(15u));
}

// The scales of a group of 32 in the four rows of the quad at vec4 `base`.
fn q8_scales(base: u32, group: u32) -> vec4<f32> {
    let words = weights[base + 2u * params.in_blocks + group / 2u];
    let bits = select(words & vec4<u32>(0xffffu), words >> vec4<u32>(16u), group % 2u == 1u);
    return vec4<f32>(
        unpack2x16float(bits.x).x, unpack2x16float(bits.y).x, unpack2x16float(bits.z).x, unpack2x16float(bits.w).x);
}

// Scales and minima of a group in the four rows of a quad.
struct Steps {
    scale: vec4<f32>,
    minimum: vec4<f32>,
}

fn q4_steps(base: u32, group: u32) -> Steps {
    let words = weights[base + params.in_blocks + group];
    let a = unpack2x16float(words.x);
    let b = unpack2x16float(words.y);
    let c = unpack2x16float(words.z);
    let d = unpack2x16float(words.w);
    return Steps(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

// Weights 8·block … 8·block + 7 of row `row` of the quad at vec4 `base`, in F32 or F16. (Compilers inline before they drop
// the formats that WEIGHT_FORMAT is not, so what is called often says what it needs.)
fn float_eight(base: u32, row: u32, block: u32) -> Eight {
    if WEIGHT_FORMAT == F16 {
        let bits = weights[base + 4u * block + row];
        return Eight(
            vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y)),
            vec4<f32>(unpack2x16float(bits.z), unpack2x16float(bits.w)),
        );
    }
    let at = base + 8u * block + row;
    return Eight(bitcast<vec4<f32>>(weights[at]), bitcast<vec4<f32>>(weights[at + 4u]));
}

// As `float_eight`, in any format.
fn row_eight(base: u32, row: u32, block: u32) -> Eight {
    switch WEIGHT_FORMAT {
        case Q8: {
            let scale = q8_scales(base, block / 4u)[row];
            let eight = row_codes(base, row, block);
            return Eight(scale * eight.lo, scale * eight.hi);
        }
        case Q4: {
            let steps = q4_steps(base, block / 4u);
            let eight = row_codes(base, row, block);
            return Eight(
                steps.scale[row] * eight.lo + steps.minimum[row], steps.scale[row] * eight.hi + steps.minimum[row]);
        }
        default: { return float_eight(base, row, block); }
    }
}

// As `row_eight`, of a quantised row, without its scales.
fn row_codes(base: u32, row: u32, block: u32) -> Eight {
    if WEIGHT_FORMAT == Q8 {
        let pair = weights[base + 4u * (block / 2u) + row];
        let words = select(pair.xy, pair.zw, block % 2u == 1u);
        return Eight(q8_unpack(words.x), q8_unpack(words.y));
    }
    let word = weights[base + 4u * (block / 4u) + row][block % 4u];
    return Eight(q4_low(word), q4_high(word));
}

// The same weights of all four rows.
struct QuadEight {
    r0: Eight,
    r1: Eight,
    r2: Eight,
    r3: Eight,
}

fn quad_eight(base: u32, block: u32) -> QuadEight {
    switch WEIGHT_FORMAT {
        case Q8: {
            let scales = q8_scales(base, block / 4u);
            let a = row_codes(base, 0u, block);
            let b = row_codes(base, 1u, block);
            let c = row_codes(base, 2u, block);
            let d = row_codes(base, 3u, block);
            return QuadEight(
                Eight(scales.x * a.lo, scales.x * a.hi),
                Eight(scales.y * b.lo, scales.y * b.hi),
                Eight(scales.z * c.lo, scales.z * c.hi),
                Eight(scales.w * d.lo, scales.w * d.hi),
            );
        }
        case Q4: {
            let steps = q4_steps(base, block / 4u);
            let s = steps.scale;
            let m = steps.minimum;
            let a = row_codes(base, 0u, block);
            let b = row_codes(base, 1u, block);
            let c = row_codes(base, 2u, block);
            let d = row_codes(base, 3u, block);
            return QuadEight(
                Eight(s.x * a.lo + m.x, s.x * a.hi + m.x),
                Eight(s.y * b.lo + m.y, s.y * b.hi + m.y),
                Eight(s.z * c.lo + m.z, s.z * c.hi + m.z),
                Eight(s.w * d.lo + m.w, s.w * d.hi + m.w),
            );
        }
        default: {
            return QuadEight(
                float_eight(base, 0u, block),
                float_eight(base, 1u, block),
                float_eight(base, 2u, block),
                float_eight(base, 3u, block),
            );
        }
    }
}

// The vec4 where quad `quad` of the buffer starts.
fn quad_base(quad: u32) -> u32 {
    return 4u * quad * row_vec4s();
}
