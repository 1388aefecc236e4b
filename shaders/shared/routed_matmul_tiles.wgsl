// Tiles of numbers of one type, a block of 8 inputs at a time: `Four` is a vector of them and `Square` four of these.

//!needs var src, struct Four, struct Square, struct Staged, struct Sums, fn row_eight

const STEP_BLOCKS: u32 = 1u;

// Two vectors for each row or column.
var<workgroup> row_tile: array<Four, 64>;
var<workgroup> column_tile: array<Four, 128>;

fn stage(lane: u32, staged: Staged, step: u32) {
    if lane < 64u {
        row_tile[lane] = Four(src[staged.row + 2u * step + lane % 2u]);
    } else {
        let eight = row_eight(staged.quad, staged.column, step);
        column_tile[2u * (lane - 64u)] = Four(eight.lo);
        column_tile[2u * (lane - 64u) + 1u] = Four(eight.hi);
    }
}

fn products(local: vec2<u32>) -> Sums {
    let c = 2u * local.x;
    let lo = Square(column_tile[c], column_tile[c + 32u], column_tile[c + 64u], column_tile[c + 96u]);
    let hi = Square(column_tile[c + 1u], column_tile[c + 33u], column_tile[c + 65u], column_tile[c + 97u]);
    let r = 8u * local.y;
    return Sums(
        vec4<f32>(row_tile[r] * lo + row_tile[r + 1u] * hi),
        vec4<f32>(row_tile[r + 2u] * lo + row_tile[r + 3u] * hi),
        vec4<f32>(row_tile[r + 4u] * lo + row_tile[r + 5u] * hi),
        vec4<f32>(row_tile[r + 6u] * lo + row_tile[r + 7u] * hi),
    );
}
