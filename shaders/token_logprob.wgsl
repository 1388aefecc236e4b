// token_logprob: how likely one given token is at each row of logits, in nats
//
//     value[r] = (logit_t − m) − ln Σ_v exp(logit_v − m),  t = targets[r], m the largest logit of the row
//
// If a logit of a row is not finite, its value is NOT_FINITE.
//
// logits  [rows, stride] f32, the first `vocab` of a row count
// targets [rows] u32                values [rows] f32 by their bits
// grid    y: rows, one workgroup a row; two passes over the row

struct Params {
    vocab: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;

//!include "shared/reduce.wgsl"
//!include "shared/finite.wgsl"

var<workgroup> lane_highest: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let start = group.y * params.stride / 4u;
    let quads = (params.vocab + 3u) / 4u;
    // Four at a time: llvmpipe's 65,535 turns (see row_attention_prefill) are 1,000,000 tokens in eight lanes.
    var highest = logits[start].x;
    var broken = 0.0;
    for (var at = lane; at < quads; at += LANES) {
        let four = logits[start + at];
        // Padding is zero, and no logit.
        let inside = 4u * at + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
        let own = select(vec4<f32>(four.x), four, inside);
        highest = max(highest, max(max(own.x, own.y), max(own.z, own.w)));
        let all = is_finite(four.x) && is_finite(four.y) && is_finite(four.z) && is_finite(four.w);
        broken += select(1.0, 0.0, all);
    }
    lane_highest[lane] = highest;
    workgroupBarrier();
    for (var other = 0u; other < LANES; other++) {
        highest = max(highest, lane_highest[other]);
    }
    var sums = vec4<f32>(0.0);
    for (var at = lane; at < quads; at += LANES) {
        let inside = 4u * at + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
        sums += select(vec4<f32>(0.0), exp(logits[start + at] - highest), inside);
    }
    let sum = workgroup_sum(lane, dot(sums, vec4<f32>(1.0)));
    let finite = workgroup_sum(lane, broken) == 0.0;
    if lane == 0u {
        let token = min(targets[group.y], params.vocab - 1u);
        // In this order large logits keep their precision.
        let value = (logits[start + token / 4u][token % 4u] - highest) - log(sum);
        values[group.y] = select(NOT_FINITE, bitcast<u32>(value), finite);
    }
}
