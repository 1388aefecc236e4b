// routed_matmul, for many rows on software adapters with subgroups: one lane computes 8 or, TALL, 16 rows × 8 columns in
// registers, as in the plain variant, and the lanes of a subgroup load the rows' inputs together, a row each.
// With SWIGLU the 8 columns are 4 of the gate half and the same 4 of the up half.
// grid   x: tiles of at most 8 or 16 rows, y: column blocks of the part by LANES: the tiles of an expert follow each other on
//        the weights of a column block while caches have them

//!include "shared/routed_matmul.wgsl"
//!include "shared/routed_matmul_registers.wgsl"
//!include "shared/broadcast.wgsl"

// Tiles have 16 rows instead of 8.
override TALL: bool = true;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let tile = tile_at(group.x);
    if tile.rows == 0u {
        return;
    }
    let column_block = group.y * LANES + lane;
    let w = weight_quads(tile.expert, column_block);

    // The rows that this lane loads; with 4 lanes two of each eight.
    let x0 = src_start(assignment_at(tile, lane % 8u));
    let x4 = src_start(assignment_at(tile, lane % 8u + 4u));
    let x8 = src_start(assignment_at(tile, lane % 8u + 8u));
    let x12 = src_start(assignment_at(tile, lane % 8u + 12u));

    var lo0 = vec4<f32>(0.0); var hi0 = vec4<f32>(0.0);
    var lo1 = vec4<f32>(0.0); var hi1 = vec4<f32>(0.0);
    var lo2 = vec4<f32>(0.0); var hi2 = vec4<f32>(0.0);
    var lo3 = vec4<f32>(0.0); var hi3 = vec4<f32>(0.0);
    var lo4 = vec4<f32>(0.0); var hi4 = vec4<f32>(0.0);
    var lo5 = vec4<f32>(0.0); var hi5 = vec4<f32>(0.0);
    var lo6 = vec4<f32>(0.0); var hi6 = vec4<f32>(0.0);
    var lo7 = vec4<f32>(0.0); var hi7 = vec4<f32>(0.0);
    var lo8 = vec4<f32>(0.0); var hi8 = vec4<f32>(0.0);
    var lo9 = vec4<f32>(0.0); var hi9 = vec4<f32>(0.0);
    var lo10 = vec4<f32>(0.0); var hi10 = vec4<f32>(0.0);
    var lo11 = vec4<f32>(0.0); var hi11 = vec4<f32>(0.0);
    var lo12 = vec4<f32>(0.0); var hi12 = vec4<f32>(0.0);
    var lo13 = vec4<f32>(0.0); var hi13 = vec4<f32>(0.0);
    var lo14 = vec4<f32>(0.0); var hi14 = vec4<f32>(0.0);
    var lo15 = vec4<f32>(0.0); var hi15 = vec4<f32>(0.0);
    for (var block = 0u; block < params.in_blocks; block++) {
        let low = columns(w.low, block);
        let high = columns(w.high, block);
        let first = rows_at(x0 + 2u * block, x4 + 2u * block);
        let second = rows_at(x0 + 2u * block + 1u, x4 + 2u * block + 1u);
        lo0 += step8(first.q0, second.q0, low); hi0 += step8(first.q0, second.q0, high);
        lo1 += step8(first.q1, second.q1, low); hi1 += step8(first.q1, second.q1, high);
        lo2 += step8(first.q2, second.q2, low); hi2 += step8(first.q2, second.q2, high);
        lo3 += step8(first.q3, second.q3, low); hi3 += step8(first.q3, second.q3, high);
        lo4 += step8(first.q4, second.q4, low); hi4 += step8(first.q4, second.q4, high);
        lo5 += step8(first.q5, second.q5, low); hi5 += step8(first.q5, second.q5, high);
        lo6 += step8(first.q6, second.q6, low); hi6 += step8(first.q6, second.q6, high);
        lo7 += step8(first.q7, second.q7, low); hi7 += step8(first.q7, second.q7, high);
        if TALL {
            let third = rows_at(x8 + 2u * block, x12 + 2u * block);
            let fourth = rows_at(x8 + 2u * block + 1u, x12 + 2u * block + 1u);
            lo8 += step8(third.q0, fourth.q0, low); hi8 += step8(third.q0, fourth.q0, high);
            lo9 += step8(third.q1, fourth.q1, low); hi9 += step8(third.q1, fourth.q1, high);
            lo10 += step8(third.q2, fourth.q2, low); hi10 += step8(third.q2, fourth.q2, high);
            lo11 += step8(third.q3, fourth.q3, low); hi11 += step8(third.q3, fourth.q3, high);
            lo12 += step8(third.q4, fourth.q4, low); hi12 += step8(third.q4, fourth.q4, high);
            lo13 += step8(third.q5, fourth.q5, low); hi13 += step8(third.q5, fourth.q5, high);
            lo14 += step8(third.q6, fourth.q6, low); hi14 += step8(third.q6, fourth.q6, high);
            lo15 += step8(third.q7, fourth.q7, low); hi15 += step8(third.q7, fourth.q7, high);
        }
    }

    finish(tile, 0u, column_block, lo0, hi0);
    finish(tile, 1u, column_block, lo1, hi1);
    finish(tile, 2u, column_block, lo2, hi2);
    finish(tile, 3u, column_block, lo3, hi3);
    finish(tile, 4u, column_block, lo4, hi4);
    finish(tile, 5u, column_block, lo5, hi5);
    finish(tile, 6u, column_block, lo6, hi6);
    finish(tile, 7u, column_block, lo7, hi7);
    if TALL {
        finish(tile, 8u, column_block, lo8, hi8);
        finish(tile, 9u, column_block, lo9, hi9);
        finish(tile, 10u, column_block, lo10, hi10);
        finish(tile, 11u, column_block, lo11, hi11);
        finish(tile, 12u, column_block, lo12, hi12);
        finish(tile, 13u, column_block, lo13, hi13);
        finish(tile, 14u, column_block, lo14, hi14);
        finish(tile, 15u, column_block, lo15, hi15);
    }
}

// Quads of eight rows: this lane's own, given to all.
fn rows_at(low: u32, high: u32) -> Quads {
    let own = src[low];
    var other = own;
    if LANES < 8u {
        other = src[high];
    }
    return spread(own, other);
}

// Weights of 8 inputs by input: quad i holds input i of four columns.
fn columns(base: u32, block: u32) -> Quads {
    let w = quad_eight(base, block);
    return Quads(
        vec4<f32>(w.r0.lo.x, w.r1.lo.x, w.r2.lo.x, w.r3.lo.x),
        vec4<f32>(w.r0.lo.y, w.r1.lo.y, w.r2.lo.y, w.r3.lo.y),
        vec4<f32>(w.r0.lo.z, w.r1.lo.z, w.r2.lo.z, w.r3.lo.z),
        vec4<f32>(w.r0.lo.w, w.r1.lo.w, w.r2.lo.w, w.r3.lo.w),
        vec4<f32>(w.r0.hi.x, w.r1.hi.x, w.r2.hi.x, w.r3.hi.x),
        vec4<f32>(w.r0.hi.y, w.r1.hi.y, w.r2.hi.y, w.r3.hi.y),
        vec4<f32>(w.r0.hi.z, w.r1.hi.z, w.r2.hi.z, w.r3.hi.z),
        vec4<f32>(w.r0.hi.w, w.r1.hi.w, w.r2.hi.w, w.r3.hi.w),
    );
}

// What 8 inputs of a row add to four columns.
fn step8(lo: vec4<f32>, hi: vec4<f32>, w: Quads) -> vec4<f32> {
    var sum = lo.x * w.q0;
    sum = fma(vec4<f32>(lo.y), w.q1, sum);
    sum = fma(vec4<f32>(lo.z), w.q2, sum);
    sum = fma(vec4<f32>(lo.w), w.q3, sum);
    sum = fma(vec4<f32>(hi.x), w.q4, sum);
    sum = fma(vec4<f32>(hi.y), w.q5, sum);
    sum = fma(vec4<f32>(hi.z), w.q6, sum);
    return fma(vec4<f32>(hi.w), w.q7, sum);
}
