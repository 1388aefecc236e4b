// routed_matmul, for many rows on software adapters: one invocation computes 8 rows × 8 columns in registers,
// no workgroup memory. With SWIGLU the 8 columns are 4 of the gate half and the same 4 of the up half.
// grid   x: column blocks of the part, y: tiles of at most 8 rows

//!include "shared/routed_matmul.wgsl"

@group(0) @binding(6) var<storage, read_write> dst: array<vec4<f32>>;

// Finishes one row: `lo` and `hi` are the two quads, or the gate and up halves of one.
fn finish(tile: Tile, row: u32, assignment: u32, column_block: u32, lo: vec4<f32>, hi: vec4<f32>) {
    if row >= tile.rows {
        return;
    }
    if SWIGLU {
        store(tile.expert, assignment, column_block, silu(lo) * hi);
    } else {
        store(tile.expert, assignment, 2u * column_block, lo);
        store(tile.expert, assignment, 2u * column_block + 1u, hi);
    }
}

@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let tile = tile_at(at.y);
    let column_block = at.x;
    let quads = select(2u, 1u, SWIGLU);
    if tile.rows == 0u || column_block * quads >= params.part_quads {
        return;
    }

    // Weight rows of the low and the high quad.
    let low = 4u * quads * column_block;
    let high_half = select(0u, 1u, SWIGLU);
    let high = low + select(4u, 0u, SWIGLU);
    let w0 = row_start(tile.expert, 0u, low);
    let w1 = row_start(tile.expert, 0u, low + 1u);
    let w2 = row_start(tile.expert, 0u, low + 2u);
    let w3 = row_start(tile.expert, 0u, low + 3u);
    let w4 = row_start(tile.expert, high_half, high);
    let w5 = row_start(tile.expert, high_half, high + 1u);
    let w6 = row_start(tile.expert, high_half, high + 2u);
    let w7 = row_start(tile.expert, high_half, high + 3u);

    let a0 = assignment_at(tile, 0u);
    let a1 = assignment_at(tile, 1u);
    let a2 = assignment_at(tile, 2u);
    let a3 = assignment_at(tile, 3u);
    let a4 = assignment_at(tile, 4u);
    let a5 = assignment_at(tile, 5u);
    let a6 = assignment_at(tile, 6u);
    let a7 = assignment_at(tile, 7u);
    let x0 = src_start(a0);
    let x1 = src_start(a1);
    let x2 = src_start(a2);
    let x3 = src_start(a3);
    let x4 = src_start(a4);
    let x5 = src_start(a5);
    let x6 = src_start(a6);
    let x7 = src_start(a7);

    var lo0 = vec4<f32>(0.0); var lo1 = vec4<f32>(0.0); var lo2 = vec4<f32>(0.0); var lo3 = vec4<f32>(0.0);
    var lo4 = vec4<f32>(0.0); var lo5 = vec4<f32>(0.0); var lo6 = vec4<f32>(0.0); var lo7 = vec4<f32>(0.0);
    var hi0 = vec4<f32>(0.0); var hi1 = vec4<f32>(0.0); var hi2 = vec4<f32>(0.0); var hi3 = vec4<f32>(0.0);
    var hi4 = vec4<f32>(0.0); var hi5 = vec4<f32>(0.0); var hi6 = vec4<f32>(0.0); var hi7 = vec4<f32>(0.0);

    for (var block = 0u; block < params.in_blocks; block++) {
        let e0 = row_eight(w0, block);
        let e1 = row_eight(w1, block);
        let e2 = row_eight(w2, block);
        let e3 = row_eight(w3, block);
        let e4 = row_eight(w4, block);
        let e5 = row_eight(w5, block);
        let e6 = row_eight(w6, block);
        let e7 = row_eight(w7, block);

        // Columns of a matrix are weight rows, so vector · matrix is four dot products.
        let low_lo = mat4x4<f32>(e0.lo, e1.lo, e2.lo, e3.lo);
        let high_lo = mat4x4<f32>(e4.lo, e5.lo, e6.lo, e7.lo);
        let start = 2u * block;
        var x = src[x0 + start]; lo0 += x * low_lo; hi0 += x * high_lo;
        x = src[x1 + start]; lo1 += x * low_lo; hi1 += x * high_lo;
        x = src[x2 + start]; lo2 += x * low_lo; hi2 += x * high_lo;
        x = src[x3 + start]; lo3 += x * low_lo; hi3 += x * high_lo;
        x = src[x4 + start]; lo4 += x * low_lo; hi4 += x * high_lo;
        x = src[x5 + start]; lo5 += x * low_lo; hi5 += x * high_lo;
        x = src[x6 + start]; lo6 += x * low_lo; hi6 += x * high_lo;
        x = src[x7 + start]; lo7 += x * low_lo; hi7 += x * high_lo;

        let low_hi = mat4x4<f32>(e0.hi, e1.hi, e2.hi, e3.hi);
        let high_hi = mat4x4<f32>(e4.hi, e5.hi, e6.hi, e7.hi);
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

    finish(tile, 0u, a0, column_block, lo0, hi0);
    finish(tile, 1u, a1, column_block, lo1, hi1);
    finish(tile, 2u, a2, column_block, lo2, hi2);
    finish(tile, 3u, a3, column_block, lo3, hi3);
    finish(tile, 4u, a4, column_block, lo4, hi4);
    finish(tile, 5u, a5, column_block, lo5, hi5);
    finish(tile, 6u, a6, column_block, lo6, hi6);
    finish(tile, 7u, a7, column_block, lo7, hi7);
}

// Stores outputs 4·quad … of this part for one assignment; columns past the part are zero padding.
fn store(expert: u32, assignment: u32, quad: u32, sum: vec4<f32>) {
    if quad >= params.part_quads {
        return;
    }
    let columns = 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
    var value = select(vec4<f32>(0.0), sum, columns < vec4<u32>(params.part_rows));
    let column = params.part_first / 4u + quad;
    if BIAS {
        value += bias_at(expert, column);
    }
    value = activate(value);
    dst[assignment * params.out_quads + column] = value;
}
