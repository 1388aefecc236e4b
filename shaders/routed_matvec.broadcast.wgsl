// routed_matvec, for few rows on software adapters with subgroups: one lane computes four outputs of one row, as in the
// plain variant, and the lanes of a subgroup load the row together, 32 inputs at a time.
// grid   x: output quads of the part by LANES, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/broadcast.wgsl"

// Rows are not whole groups of 32. Where they are, a loop for the rest that never turns would still cost a fifth.
override REST: bool = true;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let work = work_of(group, LANES);
    if is_idle(work) {
        return;
    }
    let quad = work.quad + lane;
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < params.slots; slot++) {
        let assignment = work.row * params.slots + slot;
        let expert = expert_of(assignment);
        let start = src_start(work, assignment);
        var value = dot4(lane, work, expert, 0u, quad, start);
        if SWIGLU {
            value = silu(value) * dot4(lane, work, expert, 1u, quad, start);
        }
        sum += gate_of(assignment) * value;
    }
    // All lanes stay to the end: broadcasts want them.
    if quad < quads_of(work) {
        store(work, quad, sum);
    }
}

// The four rows of a quad of an expert's half, times the src row at vec4 index `start`.
fn dot4(lane: u32, work: Work, expert: u32, half: u32, quad: u32, start: u32) -> vec4<f32> {
    let base = quad_start(work, expert, half, quad);
    var sum = vec4<f32>(0.0);
    let groups = params.in_blocks / 4u;
    for (var i = 0u; i < groups; i++) {
        let low = src[start + 8u * i + lane % 8u];
        var high = low;
        if LANES < 8u {
            high = src[start + 8u * i + 4u + lane];
        }
        let x = spread(low, high);
        let products = vec4<f32>(
            dot32(x, base, 0u, i), dot32(x, base, 1u, i), dot32(x, base, 2u, i), dot32(x, base, 3u, i));
        switch WEIGHT_FORMAT {
            case Q8: { sum += q8_scales(base, i) * products; }
            case Q4: {
                let steps = q4_steps(base, i);
                sum += steps.scale * products + steps.minimum * sum_of(x);
            }
            default: { sum += products; }
        }
    }
    if REST {
        for (var block = 4u * groups; block < params.in_blocks; block++) {
            let lo = src[start + 2u * block];
            let hi = src[start + 2u * block + 1u];
            let w = quad_eight(base, block);
            sum += vec4<f32>(dot8(lo, hi, w.r0), dot8(lo, hi, w.r1), dot8(lo, hi, w.r2), dot8(lo, hi, w.r3));
        }
    }
    return sum;
}

// 32 inputs times group `i` of a row of the quad at vec4 `base`; without the scales, if it has some.
fn dot32(x: Quads, base: u32, row: u32, i: u32) -> f32 {
    switch WEIGHT_FORMAT {
        case Q8: {
            let a = weights[base + 8u * i + row];
            let b = weights[base + 8u * i + 4u + row];
            return dot8(x.q0, x.q1, Eight(q8_unpack(a.x), q8_unpack(a.y)))
                + dot8(x.q2, x.q3, Eight(q8_unpack(a.z), q8_unpack(a.w)))
                + dot8(x.q4, x.q5, Eight(q8_unpack(b.x), q8_unpack(b.y)))
                + dot8(x.q6, x.q7, Eight(q8_unpack(b.z), q8_unpack(b.w)));
        }
        case Q4: {
            let a = weights[base + 4u * i + row];
            return dot8(x.q0, x.q1, Eight(q4_low(a.x), q4_high(a.x)))
                + dot8(x.q2, x.q3, Eight(q4_low(a.y), q4_high(a.y)))
                + dot8(x.q4, x.q5, Eight(q4_low(a.z), q4_high(a.z)))
                + dot8(x.q6, x.q7, Eight(q4_low(a.w), q4_high(a.w)));
        }
        default: {
            return dot8(x.q0, x.q1, float_eight(base, row, 4u * i))
                + dot8(x.q2, x.q3, float_eight(base, row, 4u * i + 1u))
                + dot8(x.q4, x.q5, float_eight(base, row, 4u * i + 2u))
                + dot8(x.q6, x.q7, float_eight(base, row, 4u * i + 3u));
        }
    }
}

fn sum_of(x: Quads) -> f32 {
    return dot(((x.q0 + x.q1) + (x.q2 + x.q3)) + ((x.q4 + x.q5) + (x.q6 + x.q7)), vec4<f32>(1.0));
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
