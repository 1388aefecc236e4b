// attention_merge: puts the splits of row_attention_decode together.
//
//     M = max_i m_i,   o = Σ_i exp(m_i − M) o_i / Σ_i exp(m_i − M) l_i, 0 for a row without keys
//
// split_sums [tokens, heads, splits, d] f32, stats [tokens, heads, splits] (m, l)
// out     [tokens · slots, 4·out_quads]
// grid    x: vec4s of all query heads, y: tokens

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    head_quads: u32,
    out_quads: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> split_sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x / params.head_quads;
    let column = at.x % params.head_quads;
    let token = at.y;
    if head >= params.slots * params.heads || token >= params.tokens {
        return;
    }
    let first = (token * params.slots * params.heads + head) * params.splits;
    var highest = stats[first].x;
    for (var i = 1u; i < params.splits; i++) {
        highest = max(highest, stats[first + i].x);
    }
    var sum = vec4<f32>(0.0);
    var total = 0.0;
    for (var i = 0u; i < params.splits; i++) {
        let stat = stats[first + i];
        let share = exp(stat.x - highest);
        sum += share * split_sums[(first + i) * params.head_quads + column];
        total += share * stat.y;
    }
    let row = token * params.slots + head / params.heads;
    out[row * params.out_quads + (head % params.heads) * params.head_quads + column] =
        select(vec4<f32>(0.0), sum / total, total > 0.0);
}
