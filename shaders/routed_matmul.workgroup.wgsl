// routed_matmul, for many rows on GPUs: a workgroup computes 32 rows × 64 columns from tiles of the input and
// the weights that it stages in workgroup memory, one block of 8 inputs at a time.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"
//!include "shared/routed_matmul_tiles.wgsl"

alias Four = vec4<f32>;
alias Square = mat4x4<f32>;

@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    compute_tile(local.xy, lane, group.xy);
}
