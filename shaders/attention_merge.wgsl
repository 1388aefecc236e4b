// attention_merge: puts the splits of row_attention_decode together.
//
//     M = max_i m_i,   o = Σ_i exp(m_i − M) o_i / Σ_i exp(m_i − M) l_i, 0 for a row without keys
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

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x / params.value_quads;
    let column = at.x % params.value_quads;
    let token = at.y;
    if head >= params.slots * params.heads || token >= params.tokens {
        return;
    }
    let first = split_row(token, head, 0u);
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
    let row = token * params.slots + head / params.heads;
    out[row * params.out_quads + (head % params.heads) * params.value_quads + column] =
        select(vec4<f32>(0.0), sum / total, total > 0.0);
}
