// What the variants of routed_matmul share that keep a tile of 8 columns in one invocation's registers: two quads of
// columns, or with SWIGLU four columns of the gate half and the same of the up half.

//!needs var params, struct Tile, fn quad_start, fn assignment_at, fn bias_at, fn activate, fn silu

@group(0) @binding(6) var<storage, read_write> dst: array<vec4<f32>>;

// Where the weights of the low and of the high quad start.
struct WeightQuads {
    low: u32,
    high: u32,
}

fn weight_quads(expert: u32, column_block: u32) -> WeightQuads {
    if SWIGLU {
        return WeightQuads(quad_start(expert, 0u, column_block), quad_start(expert, 1u, column_block));
    }
    return WeightQuads(
        quad_start(expert, 0u, 2u * column_block), quad_start(expert, 0u, 2u * column_block + 1u));
}

// Finishes one row: `lo` and `hi` are the two quads, or the gate and up halves of one.
fn finish(tile: Tile, row: u32, column_block: u32, lo: vec4<f32>, hi: vec4<f32>) {
    if row >= tile.rows {
        return;
    }
    let assignment = assignment_at(tile, row);
    if SWIGLU {
        store(tile.expert, assignment, column_block, silu(lo) * hi);
    } else {
        store(tile.expert, assignment, 2u * column_block, lo);
        store(tile.expert, assignment, 2u * column_block + 1u, hi);
    }
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
