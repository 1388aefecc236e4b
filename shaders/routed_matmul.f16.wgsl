// routed_matmul, for many rows on GPUs with 16-bit arithmetic: as the workgroup variant, but inputs and weights are
// rounded to f16 in workgroup memory, and the products of a block of 8 inputs are multiplied and added up in f16; the
// blocks' sums are added up in f32. Inputs and a block's products have to stay below f16's 65,504.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

enable f16;

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"
//!include "shared/routed_matmul_tiles.wgsl"

alias Four = vec4<f16>;
alias Square = mat4x4<f16>;

@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    compute_tile(local.xy, lane, group.xy);
}
