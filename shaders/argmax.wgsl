// argmax: tokens[r] = the index of the largest logit of row r, ties to the lower index; NOT_FINITE if one is not
//
// logits [rows, stride] f32, the first `vocab` of a row count     tokens [rows] u32
// grid   y: rows, one workgroup a row

struct Params {
    vocab: u32,
    stride: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;

//!include "shared/finite.wgsl"

// That of a banned token, which is chosen where there is no other.
const LOWEST: f32 = -3.4028234e38;

var<workgroup> best_value: array<f32, LANES>;
var<workgroup> best_index: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let start = group.y * params.stride;
    var value = LOWEST;
    var index = 0u;
    var finite = true;
    for (var i = lane; i < params.vocab; i += LANES) {
        let logit = logits[start + i];
        finite = finite && is_finite(logit);
        if logit > value {
            value = logit;
            index = i;
        }
    }
    best_value[lane] = value;
    best_index[lane] = select(NOT_FINITE, index, finite);
    workgroupBarrier();
    if lane != 0u {
        return;
    }
    for (var i = 1u; i < LANES; i++) {
        finite = finite && best_index[i] != NOT_FINITE;
        if best_value[i] > value || (best_value[i] == value && best_index[i] < index) {
            value = best_value[i];
            index = best_index[i];
        }
    }
    tokens[group.y] = select(NOT_FINITE, index, finite);
}
