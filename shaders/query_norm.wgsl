// query_norm: scores[t][i] = ‖q[t][first_head + i]‖₂, the router without weights
//
// q       [tokens, 4·q_quads] f32, heads of head_quads vec4s        scores [tokens, 4·score_quads] f32
// grid    x: heads, y: tokens

struct Params {
    tokens: u32,
    heads: u32,
    first_head: u32,
    head_quads: u32,
    q_quads: u32,
    score_quads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
// Not vec4s: four invocations share one, and a write to a component may write the whole.
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x;
    let token = at.y;
    if head >= params.heads || token >= params.tokens {
        return;
    }
    var squares = 0.0;
    for (var i = 0u; i < params.head_quads; i++) {
        let value = q[token * params.q_quads + (params.first_head + head) * params.head_quads + i];
        squares += dot(value, value);
    }
    scores[token * params.score_quads * 4u + head] = sqrt(squares);
}
