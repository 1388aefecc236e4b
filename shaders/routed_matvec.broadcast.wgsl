// routed_matvec, for few rows on software adapters with subgroups: one lane computes four outputs of one row, as in the
// plain variant, and the lanes of a subgroup load the row together, 32 inputs at a time.
// grid   x: output quads of the part by LANES, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/broadcast.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let quad = group.x * LANES + lane;
    let row = group.y;
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < params.slots; slot++) {
        let assignment = row * params.slots + slot;
        let expert = expert_of(assignment);
        let start = assignment / params.src_div * params.in_blocks * 2u;
        var value = dot4(lane, expert, 0u, 4u * quad, start);
        if SWIGLU {
            value = silu(value) * dot4(lane, expert, 1u, 4u * quad, start);
        }
        sum += gate_of(assignment) * value;
    }
    // All lanes stay to the end: broadcasts want them.
    if quad < params.part_quads {
        store(row, quad, sum);
    }
}

// Rows row … row + 3 of an expert's half, times the src row at vec4 index `start`.
fn dot4(lane: u32, expert: u32, half: u32, row: u32, start: u32) -> vec4<f32> {
    let r0 = row_start(expert, half, row);
    let r1 = row_start(expert, half, row + 1u);
    let r2 = row_start(expert, half, row + 2u);
    let r3 = row_start(expert, half, row + 3u);
    var sum = vec4<f32>(0.0);
    let groups = params.in_blocks / 4u;
    for (var i = 0u; i < groups; i++) {
        let low = src[start + 8u * i + lane % 8u];
        var high = low;
        if LANES < 8u {
            high = src[start + 8u * i + 4u + lane];
        }
        let x = spread(low, high);
        let b = 4u * i;
        sum += vec4<f32>(
            dot8(x.q0, x.q1, weight8(r0 + b)),
            dot8(x.q0, x.q1, weight8(r1 + b)),
            dot8(x.q0, x.q1, weight8(r2 + b)),
            dot8(x.q0, x.q1, weight8(r3 + b)));
        sum += vec4<f32>(
            dot8(x.q2, x.q3, weight8(r0 + b + 1u)),
            dot8(x.q2, x.q3, weight8(r1 + b + 1u)),
            dot8(x.q2, x.q3, weight8(r2 + b + 1u)),
            dot8(x.q2, x.q3, weight8(r3 + b + 1u)));
        sum += vec4<f32>(
            dot8(x.q4, x.q5, weight8(r0 + b + 2u)),
            dot8(x.q4, x.q5, weight8(r1 + b + 2u)),
            dot8(x.q4, x.q5, weight8(r2 + b + 2u)),
            dot8(x.q4, x.q5, weight8(r3 + b + 2u)));
        sum += vec4<f32>(
            dot8(x.q6, x.q7, weight8(r0 + b + 3u)),
            dot8(x.q6, x.q7, weight8(r1 + b + 3u)),
            dot8(x.q6, x.q7, weight8(r2 + b + 3u)),
            dot8(x.q6, x.q7, weight8(r3 + b + 3u)));
    }
    for (var block = 4u * groups; block < params.in_blocks; block++) {
        let lo = src[start + 2u * block];
        let hi = src[start + 2u * block + 1u];
        sum += vec4<f32>(
            dot8(lo, hi, weight8(r0 + block)),
            dot8(lo, hi, weight8(r1 + block)),
            dot8(lo, hi, weight8(r2 + block)),
            dot8(lo, hi, weight8(r3 + block)));
    }
    return sum;
}

fn dot8(lo: vec4<f32>, hi: vec4<f32>, w: Eight) -> f32 {
    var sum = lo.x * w.lo.x;
    sum = fma(lo.y, w.lo.y, sum);
    sum = fma(lo.z, w.lo.z, sum);
    sum = fma(lo.w, w.lo.w, sum);
    sum = fma(hi.x, w.hi.x, sum);
    sum = fma(hi.y, w.hi.y, sum);
    sum = fma(hi.z, w.hi.z, sum);
    return fma(hi.w, w.hi.w, sum);
}
