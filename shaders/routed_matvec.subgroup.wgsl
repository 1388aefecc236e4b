// routed_matvec, for GPUs with subgroups: as the workgroup variant, lanes summed by subgroupAdd first.
// Works for every subgroup size: subgroup leaders leave their sums where lane order decides.
// grid   x: output quads of the part, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/routed_matvec_group.wgsl"
//!include "shared/routed_matvec_block.wgsl"

var<workgroup> partial_sums: array<vec4<f32>, LANES>;
var<private> subgroup_lane: u32;
var<private> subgroup_lanes: u32;

fn group_sum(lane: u32, value: vec4<f32>) -> vec4<f32> {
    let sum = subgroupAdd(value);
    if subgroup_lane == 0u {
        partial_sums[lane / subgroup_lanes] = sum;
    }
    workgroupBarrier();
    var total = vec4<f32>(0.0);
    for (var i = 0u; i < LANES / subgroup_lanes; i++) {
        total += partial_sums[i];
    }
    workgroupBarrier();
    return total;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) invocation: u32,
    @builtin(subgroup_size) size: u32,
) {
    subgroup_lane = invocation;
    // A subgroup wider than the workgroup holds the whole of it.
    subgroup_lanes = min(size, LANES);
    compute_quad(lane, group);
}
