// routed_matmul, for many rows on software adapters: one invocation computes 8 rows × 8 columns in registers,
// no workgroup memory. With SWIGLU the 8 columns are 4 of the gate half and the same 4 of the up half.
// grid   x: column blocks of the part, y: tiles of at most 8 rows

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_registers.wgsl"

@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let tile = tile_at(at.y);
    let column_block = at.x;
    let quads = select(2u, 1u, SWIGLU);
    if tile.rows == 0u || column_block * quads >= params.part_quads {
        return;
    }

    let w = weight_quads(tile.expert, column_block);
    let x0 = src_start(assignment_at(tile, 0u));
    let x1 = src_start(assignment_at(tile, 1u));
    let x2 = src_start(assignment_at(tile, 2u));
    let x3 = src_start(assignment_at(tile, 3u));
    let x4 = src_start(assignment_at(tile, 4u));
    let x5 = src_start(assignment_at(tile, 5u));
    let x6 = src_start(assignment_at(tile, 6u));
    let x7 = src_start(assignment_at(tile, 7u));

    var lo0 = vec4<f32>(0.0); var lo1 = vec4<f32>(0.0); var lo2 = vec4<f32>(0.0); var lo3 = vec4<f32>(0.0);
    var lo4 = vec4<f32>(0.0); var lo5 = vec4<f32>(0.0); var lo6 = vec4<f32>(0.0); var lo7 = vec4<f32>(0.0);
    var hi0 = vec4<f32>(0.0); var hi1 = vec4<f32>(0.0); var hi2 = vec4<f32>(0.0); var hi3 = vec4<f32>(0.0);
    var hi4 = vec4<f32>(0.0); var hi5 = vec4<f32>(0.0); var hi6 = vec4<f32>(0.0); var hi7 = vec4<f32>(0.0);

    for (var block = 0u; block < params.in_blocks; block++) {
        let low = quad_eight(w.low, block);
        let high = quad_eight(w.high, block);

        // Columns of a matrix are weight rows, so vector · matrix is four dot products.
        let low_lo = mat4x4<f32>(low.r0.lo, low.r1.lo, low.r2.lo, low.r3.lo);
        let high_lo = mat4x4<f32>(high.r0.lo, high.r1.lo, high.r2.lo, high.r3.lo);
        let start = 2u * block;
        var x = src[x0 + start]; lo0 += x * low_lo; hi0 += x * high_lo;
        x = src[x1 + start]; lo1 += x * low_lo; hi1 += x * high_lo;
        x = src[x2 + start]; lo2 += x * low_lo; hi2 += x * high_lo;
        x = src[x3 + start]; lo3 += x * low_lo; hi3 += x * high_lo;
        x = src[x4 + start]; lo4 += x * low_lo; hi4 += x * high_lo;
        x = src[x5 + start]; lo5 += x * low_lo; hi5 += x * high_lo;
        x = src[x6 + start]; lo6 += x * low_lo; hi6 += x * high_lo;
        x = src[x7 + start]; lo7 += x * low_lo; hi7 += x * high_lo;

        let low_hi = mat4x4<f32>(low.r0.hi, low.r1.hi, low.r2.hi, low.r3.hi);
        let high_hi = mat4x4<f32>(high.r0.hi, high.r1.hi, high.r2.hi, high.r3.hi);
        let next = start + 1u;
        x = src[x0 + next]; lo0 += x * low_hi; hi0 += x * high_hi;
        x = src[x1 + next]; lo1 += x * low_hi; hi1 += x * high_hi;
        x = src[x2 + next]; lo2 += x * low_hi; hi2 += x * high_hi;
        x = src[x3 + next]; lo3 += x * low_hi; hi3 += x * high_hi;
        x = src[x4 + next]; lo4 += x * low_hi; hi4 += x * high_hi;
        x = src[x5 + next]; lo5 += x * low_hi; hi5 += x * high_hi;
        x = src[x6 + next]; lo6 += x * low_hi; hi6 += x * high_hi;
        x = src[x7 + next]; lo7 += x * low_hi; hi7 += x * high_hi;
    }

    finish(tile, 0u, column_block, lo0, hi0);
    finish(tile, 1u, column_block, lo1, hi1);
    finish(tile, 2u, column_block, lo2, hi2);
    finish(tile, 3u, column_block, lo3, hi3);
    finish(tile, 4u, column_block, lo4, hi4);
    finish(tile, 5u, column_block, lo5, hi5);
    finish(tile, 6u, column_block, lo6, hi6);
    finish(tile, 7u, column_block, lo7, hi7);
}
