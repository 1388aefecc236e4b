// routed_matmul, for many rows on GPUs that multiply 8-bit integers four at a time, with weights in Q8 or Q4: as the
// workgroup variant, a group of 32 inputs at a time, each half of which is rounded to codes of one scale, so that a product
// is of integers. Q4's minima are multiplied with the inputs as they are.
// grid   x: column blocks of the part, y: tiles of at most 32 rows

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_workgroup.wgsl"
//!include "shared/packed.wgsl"

// A group of Q8 or Q4.
const STEP_BLOCKS: u32 = 4u;

// Two halves for each row or column: codes of 16 inputs each.
var<workgroup> row_tile: array<vec4<u32>, 64>;
var<workgroup> column_tile: array<vec4<u32>, 128>;
var<workgroup> row_steps: array<RowStep, 64>;
// Of each column, its scale and its minimum.
var<workgroup> column_steps: array<vec2<f32>, 64>;

// Of half of a row.
struct RowStep {
    scale: f32,
    sum: f32,
    // As `middle_of`.
    middle: f32,
}

@compute @workgroup_size(16, 8)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    compute_tile(local.xy, lane, group.xy);
}

fn stage(lane: u32, staged: Staged, step: u32) {
    if lane < 64u {
        let start = staged.row + 8u * step + 4u * (lane % 2u);
        let a = src[start];
        let b = src[start + 1u];
        let c = src[start + 2u];
        let d = src[start + 3u];
        let most = max(most_of(a, b), most_of(c, d));
        let inverse = inverse_of(most);
        let first = codes_of(a, b, inverse);
        let second = codes_of(c, d, inverse);
        row_tile[lane] = vec4<u32>(first.lo, first.hi, second.lo, second.hi);
        let scale = scale_of(most);
        let sums = vec2<f32>(sum_of(a, b), sum_of(c, d));
        row_steps[lane] = RowStep(
            scale,
            sums.x + sums.y,
            middle_of(sums.x, scale, first) + middle_of(sums.y, scale, second),
        );
    } else {
        let a = row_packed(staged.quad, staged.column, 4u * step);
        let b = row_packed(staged.quad, staged.column, 4u * step + 1u);
        let c = row_packed(staged.quad, staged.column, 4u * step + 2u);
        let d = row_packed(staged.quad, staged.column, 4u * step + 3u);
        column_tile[2u * (lane - 64u)] = vec4<u32>(a.lo, a.hi, b.lo, b.hi);
        column_tile[2u * (lane - 64u) + 1u] = vec4<u32>(c.lo, c.hi, d.lo, d.hi);
        if WEIGHT_FORMAT == Q8 {
            column_steps[lane - 64u] = vec2<f32>(q8_scales(staged.quad, step)[staged.column], 0.0);
        } else {
            let steps = q4_steps(staged.quad, step);
            column_steps[lane - 64u] = vec2<f32>(steps.scale[staged.column], steps.minimum[staged.column]);
        }
    }
}

fn products(local: vec2<u32>) -> Sums {
    let r = 4u * local.y;
    return Sums(row(r, local.x), row(r + 1u, local.x), row(r + 2u, local.x), row(r + 3u, local.x));
}

// A row of the tile times the four columns of a lane.
fn row(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(
        product(row, column), product(row, column + 16u), product(row, column + 32u), product(row, column + 48u));
}

fn product(row: u32, column: u32) -> f32 {
    let low = row_steps[2u * row];
    let high = row_steps[2u * row + 1u];
    let steps = column_steps[column];
    let products = low.scale * dot16(row_tile[2u * row], column_tile[2u * column])
        + high.scale * dot16(row_tile[2u * row + 1u], column_tile[2u * column + 1u]);
    if WEIGHT_FORMAT == Q8 {
        return steps.x * products;
    }
    return steps.x * (products + low.middle + high.middle) + steps.y * (low.sum + high.sum);
}

fn dot16(x: vec4<u32>, w: vec4<u32>) -> f32 {
    return f32(dot_codes(Codes(x.x, x.y), Codes(w.x, w.y)) + dot_codes(Codes(x.z, x.w), Codes(w.z, w.w)));
}
