// routed_matmul, for many rows on GPUs: a workgroup computes 32 rows × 64 columns from tiles of the input and
// the weights that it stages in workgroup memory, one block of 8 inputs at a time.
// With SWIGLU the 64 columns are 32 of the gate half and the same 32 of the up half.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

//!include "shared/routed_matmul.wgsl"

// Not vec4s: writing one component of a vector may touch the others, which other lanes write.
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;

const TILE_ROWS: u32 = 32u;
const TILE_COLUMNS: u32 = 64u;

// Two vec4s for each row or column: the 8 inputs of the current block.
var<workgroup> row_tile: array<vec4<f32>, 64>;
var<workgroup> column_tile: array<vec4<f32>, 128>;

// Lane (x, y) of 16 × 8 computes rows 4y … 4y + 3 and the columns x, x + 16, x + 32, x + 48, so that with
// SWIGLU a lane holds the gate and the up value of its columns x and x + 16.
@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let tile = tile_at(group.y);
    let columns = select(TILE_COLUMNS, TILE_COLUMNS / 2u, SWIGLU);
    let first_column = group.x * columns;
    if tile.rows == 0u || first_column >= 4u * params.part_quads {
        return;
    }

    // What this lane stages: lanes 0 … 63 a vec4 of an input row, lanes 64 … 127 the 8 weights of a column.
    let staged_row = (lane % 64u) / 2u;
    let row_from = src_start(assignment_at(tile, staged_row)) + lane % 2u;
    let staged_column = lane % 64u;
    let half = select(0u, staged_column / columns, SWIGLU);
    let column = first_column + staged_column % columns;
    let weights_from = quad_start(tile.expert, half, column / 4u);

    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var block = 0u; block < params.in_blocks; block++) {
        if lane < 64u {
            row_tile[lane] = src[row_from + 2u * block];
        } else {
            let eight = row_eight(weights_from, column % 4u, block);
            column_tile[2u * staged_column] = eight.lo;
            column_tile[2u * staged_column + 1u] = eight.hi;
        }
        workgroupBarrier();
        for (var part = 0u; part < 2u; part++) {
            let c = 2u * local.x + part;
            let w = mat4x4<f32>(
                column_tile[c], column_tile[c + 32u], column_tile[c + 64u], column_tile[c + 96u]);
            let r = 8u * local.y + part;
            sum0 += row_tile[r] * w;
            sum1 += row_tile[r + 2u] * w;
            sum2 += row_tile[r + 4u] * w;
            sum3 += row_tile[r + 6u] * w;
        }
        workgroupBarrier();
    }

    let row = 4u * local.y;
    finish(tile, row, first_column + local.x, sum0);
    finish(tile, row + 1u, first_column + local.x, sum1);
    finish(tile, row + 2u, first_column + local.x, sum2);
    finish(tile, row + 3u, first_column + local.x, sum3);
}

fn finish(tile: Tile, row: u32, column: u32, sum: vec4<f32>) {
    if row >= tile.rows {
        return;
    }
    let assignment = assignment_at(tile, row);
    if SWIGLU {
        let up = sum.zw;
        let gate = sum.xy;
        let value = gate / (1.0 + exp(-gate)) * up;
        store(tile.expert, assignment, column, value.x);
        store(tile.expert, assignment, column + 16u, value.y);
    } else {
        store(tile.expert, assignment, column, sum.x);
        store(tile.expert, assignment, column + 16u, sum.y);
        store(tile.expert, assignment, column + 32u, sum.z);
        store(tile.expert, assignment, column + 48u, sum.w);
    }
}

// Stores one output of this part for one assignment; columns past the part are zero padding.
fn store(expert: u32, assignment: u32, column: u32, sum: f32) {
    if column >= 4u * params.part_quads {
        return;
    }
    var value = select(0.0, sum, column < params.part_rows);
    let to = params.part_first + column;
    if BIAS {
        value += bias_at(expert, to / 4u)[to % 4u];
    }
    value = activate(vec4<f32>(value)).x;
    dst[assignment * params.out_quads * 4u + to] = value;
}
