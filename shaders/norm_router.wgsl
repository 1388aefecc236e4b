// norm_router: xn = rms_norm(x[t]); scores z_e = router_e · xn; then the choice of shared/select.wgsl
//
// x       [tokens, width] f32        norm_weight [width] f32      router [experts, width] f32
// xn      [tokens, width] f32
// chosen  [.., tokens, k] u32, from index `first`, k = SHARED + top_k; gates likewise f32
// grid    y: tokens, one workgroup a token
//
// Scores are f32 sums in a fixed order. The lanes split into teams of `team` lanes, one expert a team at a time.

const MAX_EXPERTS: u32 = 256u;

struct Params {
    quads: u32,
    width: u32,
    experts: u32,
    top_k: u32,
    team: u32,
    first: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm_weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> router: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> xn: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(6) var<storage, read_write> gates: array<f32>;

//!include "shared/reduce.wgsl"
//!include "shared/order.wgsl"

var<workgroup> scores: array<f32, MAX_EXPERTS>;
var<workgroup> ranks: array<u32, MAX_EXPERTS>;

//!include "shared/select.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = group.y;
    let start = token * params.quads;

    var squares = 0.0;
    for (var i = lane; i < params.quads; i += LANES) {
        let value = x[start + i];
        squares += dot(value, value);
    }
    let scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.width) + params.eps);
    for (var i = lane; i < params.quads; i += LANES) {
        xn[start + i] = x[start + i] * scale * norm_weight[i];
    }

    // Each lane normalises again what it needs instead of waiting for the others' xn.
    let teams = LANES / params.team;
    let member = lane % params.team;
    for (var first = 0u; first < params.experts; first += teams) {
        let expert = first + lane / params.team;
        var score = 0.0;
        if expert < params.experts {
            for (var i = member; i < params.quads; i += params.team) {
                score += dot(x[start + i] * scale * norm_weight[i], router[expert * params.quads + i]);
            }
        }
        partial_sums[lane] = score;
        workgroupBarrier();
        if member == 0u && expert < params.experts {
            var sum = 0.0;
            for (var i = 0u; i < params.team; i++) {
                sum += partial_sums[lane + i];
            }
            scores[expert] = sum;
        }
        workgroupBarrier();
    }

    choose(lane, params.first + token * (SHARED + params.top_k));
}
