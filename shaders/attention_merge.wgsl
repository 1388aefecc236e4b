// attention_merge: puts the splits of row_attention_decode together, or of stick_breaking.
//
//     M = max_i m_i,   o = Σ_i exp(m_i − M) o_i / Σ_i exp(m_i − M) l_i, 0 for a row without keys
//     o = Σ_i exp(Σ_{j > i} r_j) o_i with STICKS: a split has what the newer ones left of a stick
//
// scratch see splits.wgsl
// out     [tokens · slots, 4·out_quads]
// grid    x: vec4s of all query heads, y: tokens

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    value_quads: u32,
    out_quads: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scratch: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

//!include "shared/splits.wgsl"

override STICKS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x / params.value_quads;
    let column = at.x % params.value_quads;
    let token = at.y;
    if head >= params.slots * params.heads || token >= params.tokens {
        return;
    }
    let first = split_row(token, head, 0u);
    let row = token * params.slots + head / params.heads;
    let to = row * params.out_quads + (head % params.heads) * params.value_quads + column;
    if STICKS {
        out[to] = broken_off(first, column);
    } else {
        out[to] = averaged(first, column);
    }
}

// A column of the sum of the splits from `first` on, by softmax.
fn averaged(first: u32, column: u32) -> vec4<f32> {
    var highest = scratch[split_stats(first)].x;
    for (var i = 1u; i < params.splits; i++) {
        highest = max(highest, scratch[split_stats(first + i)].x);
    }
    var sum = vec4<f32>(0.0);
    var total = 0.0;
    for (var i = 0u; i < params.splits; i++) {
        let stat = scratch[split_stats(first + i)];
        let share = exp(stat.x - highest);
        sum += share * scratch[(first + i) * params.value_quads + column];
        total += share * stat.y;
    }
    return select(vec4<f32>(0.0), sum / total, total > 0.0);
}

// The same from the newest on, by what is left of the stick.
fn broken_off(first: u32, column: u32) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    var rest = 0.0;
    for (var i = params.splits; i > 0u; i--) {
        let split = first + i - 1u;
        sum += exp(rest) * scratch[split * params.value_quads + column];
        rest += scratch[split_stats(split)].x;
    }
    return sum;
}
