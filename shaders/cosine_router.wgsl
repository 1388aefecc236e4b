// cosine_router: scores[t][e] = exp(temperature) · cos(hidden[t], centroid_e)
//
// hidden  [tokens, 4·hidden_quads] f32     centroids [experts, 4·hidden_quads] f32     temperature [1] f32
// scores  [tokens, 4·score_quads] f32
// grid    x: experts, y: tokens

struct Params {
    tokens: u32,
    experts: u32,
    hidden_quads: u32,
    score_quads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> hidden: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> centroids: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> temperature: array<f32>;
// Not vec4s: four invocations share one, and a write to a component may write the whole.
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let expert = at.x;
    let token = at.y;
    if expert >= params.experts || token >= params.tokens {
        return;
    }
    var product = 0.0;
    var hidden_squares = 0.0;
    var centroid_squares = 0.0;
    for (var i = 0u; i < params.hidden_quads; i++) {
        let h = hidden[token * params.hidden_quads + i];
        let c = centroids[expert * params.hidden_quads + i];
        product += dot(h, c);
        hidden_squares += dot(h, h);
        centroid_squares += dot(c, c);
    }
    // A vector of zeros points nowhere: its cosine is 0.
    let cosine = product / (max(sqrt(hidden_squares), 1e-12) * max(sqrt(centroid_squares), 1e-12));
    scores[token * params.score_quads * 4u + expert] = exp(temperature[0]) * cosine;
}
