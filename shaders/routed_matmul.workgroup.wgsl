// routed_matmul, for many rows on GPUs: a workgroup computes 32 rows × 64 columns from tiles of the input and
// the weights that it stages in workgroup memory, one block of 8 inputs at a time.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"

// Blocks of 8 inputs that are staged at a time.
const STEP_BLOCKS: u32 = 1u;

// Two vec4s for each row or column.
var<workgroup> row_tile: array<vec4<f32>, 64>;
var<workgroup> column_tile: array<vec4<f32>, 128>;

fn stage(lane: u32, staged: Staged, step: u32) {
    if lane < 64u {
        row_tile[lane] = src[staged.row + 2u * step + lane % 2u];
    } else {
        let eight = row_eight(staged.quad, staged.column, step);
        column_tile[2u * (lane - 64u)] = eight.lo;
        column_tile[2u * (lane - 64u) + 1u] = eight.hi;
    }
}

fn products(local: vec2<u32>) -> Sums {
    var sums = Sums();
    for (var part = 0u; part < 2u; part++) {
        let c = 2u * local.x + part;
        let w = mat4x4<f32>(column_tile[c], column_tile[c + 32u], column_tile[c + 64u], column_tile[c + 96u]);
        let r = 8u * local.y + part;
        sums.r0 += row_tile[r] * w;
        sums.r1 += row_tile[r + 2u] * w;
        sums.r2 += row_tile[r + 4u] * w;
        sums.r3 += row_tile[r + 6u] * w;
    }
    return sums;
}
