// routed_matmul, for many rows on GPUs: a workgroup computes 32 rows × 64 columns from tiles of the input and
// the weights that it stages in workgroup memory, one block of 8 inputs at a time.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"
//!include "shared/routed_matmul_tiles.wgsl"

alias Four = vec4<f32>;
alias Square = mat4x4<f32>;
