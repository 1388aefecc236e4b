// routed_matvec, for GPUs: one workgroup computes four outputs of one row, its lanes share the input.
// grid   x: output quads of the part, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/routed_matvec_group.wgsl"
//!include "shared/routed_matvec_block.wgsl"
//!include "shared/routed_matvec_workgroup.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    compute_quad(lane, group);
}
