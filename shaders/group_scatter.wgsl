// group_scatter: order[position] = assignment, sorted by expert, in assignment order within an expert
//
// chosen [.., assignments] u32, from `first`     counts [chunks, experts] u32, positions from group_scan
// order  [assignments] u32
// grid   x: chunks · experts, one invocation each

//!include "shared/group.wgsl"

@group(0) @binding(0) var<uniform> params: Group;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> order: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.chunks * params.experts {
        return;
    }
    let chunk = at.x / params.experts;
    let expert = at.x % params.experts;
    var position = counts[at.x];
    for (var i = chunk * CHUNK; i < min((chunk + 1u) * CHUNK, params.assignments); i++) {
        if chosen[params.first + i] == expert {
            order[position] = i;
            position++;
        }
    }
}
