// select: the experts of each token and their gates, from scores; the rules stand in shared/select.wgsl
//
// all_scores  [tokens, 4·quads] f32, one for each scored expert
// chosen      [.., tokens, k] u32, from index `first`, k slots a token; gates likewise f32
// kept_scores [.., tokens, routed experts] f32, from index `first_score`
// grid        y: tokens, one workgroup a token

const LANES: u32 = 64u;

struct Params {
    quads: u32,
    experts: u32,
    rows: u32,
    top_k: u32,
    first: u32,
    first_score: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> all_scores: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(3) var<storage, read_write> gates: array<f32>;
@group(0) @binding(4) var<storage, read_write> kept_scores: array<f32>;

//!include "shared/select.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = group.y;
    for (var row = lane; row < params.rows; row += LANES) {
        scores[UNSCORED + row] = all_scores[token * params.quads + row / 4u][row % 4u];
    }
    workgroupBarrier();
    choose(lane, token);
}
