// routed_matmul, for many rows on GPUs with 16-bit arithmetic: as the workgroup variant, but inputs and weights are
// rounded to f16 in workgroup memory, and the products of a block of 8 inputs are multiplied and added up in f16; the
// blocks' sums are added up in f32. Inputs and a block's products have to stay below f16's 65,504.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

enable f16;

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"

// Blocks of 8 inputs that are staged at a time.
const STEP_BLOCKS: u32 = 1u;

// Two vec4s for each row or column.
var<workgroup> row_tile: array<vec4<f16>, 64>;
var<workgroup> column_tile: array<vec4<f16>, 128>;

fn stage(lane: u32, staged: Staged, step: u32) {
    if lane < 64u {
        row_tile[lane] = vec4<f16>(src[staged.row + 2u * step + lane % 2u]);
    } else {
        let eight = row_eight(staged.quad, staged.column, step);
        column_tile[2u * (lane - 64u)] = vec4<f16>(eight.lo);
        column_tile[2u * (lane - 64u) + 1u] = vec4<f16>(eight.hi);
    }
}

fn products(local: vec2<u32>) -> Sums {
    let c = 2u * local.x;
    let lo = mat4x4<f16>(column_tile[c], column_tile[c + 32u], column_tile[c + 64u], column_tile[c + 96u]);
    let hi = mat4x4<f16>(column_tile[c + 1u], column_tile[c + 33u], column_tile[c + 65u], column_tile[c + 97u]);
    let r = 8u * local.y;
    return Sums(
        vec4<f32>(row_tile[r] * lo + row_tile[r + 1u] * hi),
        vec4<f32>(row_tile[r + 2u] * lo + row_tile[r + 3u] * hi),
        vec4<f32>(row_tile[r + 4u] * lo + row_tile[r + 5u] * hi),
        vec4<f32>(row_tile[r + 6u] * lo + row_tile[r + 7u] * hi),
    );
}
