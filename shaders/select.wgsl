// select: the experts of each token and their gates, from scores; the rules stand in shared/select.wgsl
//
// all_scores  [tokens, 4·quads] f32, one for each expert
// chosen      [.., tokens, k] u32, from index `first`, k = SHARED + top_k; gates likewise f32
// grid        y: tokens, one workgroup a token

const MAX_EXPERTS: u32 = 256u;

struct Params {
    quads: u32,
    experts: u32,
    top_k: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> all_scores: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(3) var<storage, read_write> gates: array<f32>;

//!include "shared/reduce.wgsl"
//!include "shared/order.wgsl"

var<workgroup> scores: array<f32, MAX_EXPERTS>;
var<workgroup> ranks: array<u32, MAX_EXPERTS>;

//!include "shared/select.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = group.y;
    for (var expert = lane; expert < params.experts; expert += LANES) {
        scores[expert] = all_scores[token * params.quads + expert / 4u][expert % 4u];
    }
    workgroupBarrier();
    choose(lane, params.first + token * (SHARED + params.top_k));
}
