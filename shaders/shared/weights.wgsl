// Weights in storage. Needs `weights: array<vec4<u32>>` and `params.in_blocks` in scope: a row has
// 8·in_blocks weights in `row_vec4s()` whole vec4s. Four rows make a quad, and their vec4s alternate: vec4 v of a
// quad's row i is vec4 4·v + i of the quad. So a row's vec4s lie 4 apart, and a lane that computes four outputs reads
// one stream.
//
// F32, F16   the weights in order
// Q8         groups of 32: 2 vec4s of signed bytes each; then the scales, two f16 a word.   w = scale · q
// Q4         groups of 32: 1 vec4 each, whose word j has inputs 8j … 8j + 3 of the group in the low halves of its
//            bytes and 8j + 4 … 8j + 7 in the high ones; then a word for each group, scale and minimum in f16.
//            w = scale · q + minimum
//
// Scales fill whole vec4s, with zeros at the end. Rows of Q8 and Q4 are whole groups: in_blocks is a multiple of 4.

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

// The scale of a group of 32 in the row that starts at vec4 `row_base`.
fn q8_scale(row_base: u32, group: u32) -> f32 {
    let pair = group / 2u;
    return unpack2x16float(weights[row_base + 4u * (params.in_blocks / 2u + pair / 4u)][pair % 4u])[group % 2u];
}

// Scale and minimum of a group.
fn q4_scale_min(row_base: u32, group: u32) -> vec2<f32> {
    return unpack2x16float(weights[row_base + 4u * (params.in_blocks / 4u + group / 4u)][group % 4u]);
}

// Weights 8·block … 8·block + 7 of the row that starts at vec4 `row_base`, in any format.
fn row_eight(row_base: u32, block: u32) -> Eight {
    switch WEIGHT_FORMAT {
        case F16: {
            let bits = weights[row_base + 4u * block];
            return Eight(
                vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y)),
                vec4<f32>(unpack2x16float(bits.z), unpack2x16float(bits.w)),
            );
        }
        case Q8: {
            let pair = weights[row_base + 4u * (block / 2u)];
            let words = select(pair.xy, pair.zw, block % 2u == 1u);
            let scale = q8_scale(row_base, block / 4u);
            return Eight(scale * q8_unpack(words.x), scale * q8_unpack(words.y));
        }
        case Q4: {
            let word = weights[row_base + 4u * (block / 4u)][block % 4u];
            let step = q4_scale_min(row_base, block / 4u);
            return Eight(step.x * q4_low(word) + step.y, step.x * q4_high(word) + step.y);
        }
        default: {
            let at = row_base + 8u * block;
            return Eight(bitcast<vec4<f32>>(weights[at]), bitcast<vec4<f32>>(weights[at + 4u]));
        }
    }
}

// The vec4 where quad `quad` of the buffer starts, and with it the first of its rows; the others follow, one vec4 apart.
fn quad_base(quad: u32) -> u32 {
    return 4u * quad * row_vec4s();
}
