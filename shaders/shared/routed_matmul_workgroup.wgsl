// The lanes and the epilogue of the variants of routed_matmul that stage tiles in workgroup memory: a workgroup computes
// 32 rows × 64 columns, a step of inputs at a time. A variant has `stage`, `products` and STEP_BLOCKS,
// the blocks of 8 inputs in a step.
// With SWIGLU the 64 columns are 32 of the gate half and the same 32 of the up half.

//!needs var params, struct Tile, fn tile_at, fn assignment_at, fn src_start, fn quad_start, fn bias_at, fn activate
//!needs const STEP_BLOCKS, fn stage, fn products

// Not vec4s: writing one component of a vector may touch the others, which other lanes write.
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;

const TILE_ROWS: u32 = 32u;
const TILE_COLUMNS: u32 = 64u;

// What a lane stages: lanes 0 … 63 half of a step's inputs of row lane / 2, lanes 64 … 127 a step's weights of column
// lane − 64.
struct Staged {
    // The vec4 where the row starts.
    row: u32,
    // The vec4 where the column's quad starts, and which of its four rows of weights the column is.
    quad: u32,
    column: u32,
}

// Four rows of what a lane computes.
struct Sums {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
}

// Lane (x, y) of 16 × 8 computes rows 4y … 4y + 3 and the columns x, x + 16, x + 32, x + 48, so that with
// SWIGLU a lane holds the gate and the up value of its columns x and x + 16.
fn compute_tile(local: vec2<u32>, lane: u32, group: vec2<u32>) {
    let tile = tile_at(group.y);
    let columns = select(TILE_COLUMNS, TILE_COLUMNS / 2u, SWIGLU);
    let first_column = group.x * columns;
    if tile.rows == 0u || first_column >= 4u * params.part_quads {
        return;
    }

    let staged_column = lane % 64u;
    let half = select(0u, staged_column / columns, SWIGLU);
    let column = first_column + staged_column % columns;
    let staged = Staged(
        src_start(assignment_at(tile, staged_column / 2u)),
        quad_start(tile.expert, half, column / 4u),
        column % 4u,
    );

    var sums = Sums();
    for (var step = 0u; step < params.in_blocks / STEP_BLOCKS; step++) {
        stage(lane, staged, step);
        workgroupBarrier();
        let more = products(local);
        sums.r0 += more.r0;
        sums.r1 += more.r1;
        sums.r2 += more.r2;
        sums.r3 += more.r3;
        workgroupBarrier();
    }

    let row = 4u * local.y;
    finish(tile, row, first_column + local.x, sums.r0);
    finish(tile, row + 1u, first_column + local.x, sums.r1);
    finish(tile, row + 2u, first_column + local.x, sums.r2);
    finish(tile, row + 3u, first_column + local.x, sums.r3);
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
