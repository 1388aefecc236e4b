// group_count: counts[c][e] = number of assignments in chunk c that chose expert e
//
// chosen [.., assignments] u32, from `first`     counts [chunks, experts] u32
// grid   x: chunks · experts, one invocation each

//!include "shared/group.wgsl"

@group(0) @binding(0) var<uniform> params: Group;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.chunks * params.experts {
        return;
    }
    let chunk = at.x / params.experts;
    let expert = at.x % params.experts;
    var count = 0u;
    for (var i = chunk * CHUNK; i < min((chunk + 1u) * CHUNK, params.assignments); i++) {
        count += u32(chosen[params.first + i] == expert);
    }
    counts[at.x] = count;
}
