// The part of a row's product that one lane of LANES computes: every LANES-th block of each weight row.

const LANES: u32 = 64u;

fn lane_dot4(lane: u32, work: Work, expert: u32, half: u32, quad: u32, start: u32) -> vec4<f32> {
    let base = quad_start(work, expert, half, quad);
    var sum = vec4<f32>(0.0);
    for (var block = lane; block < params.in_blocks; block += LANES) {
        let lo = src[start + 2u * block];
        let hi = src[start + 2u * block + 1u];
        let w = quad_eight(base, block);
        sum += lo * mat4x4<f32>(w.r0.lo, w.r1.lo, w.r2.lo, w.r3.lo)
            + hi * mat4x4<f32>(w.r0.hi, w.r1.hi, w.r2.hi, w.r3.hi);
    }
    return sum;
}

// Four outputs of the row at work, the same in every lane. SwiGLU needs whole sums before its product, so each slot
// is summed over the lanes on its own; without it, the lanes add up their slots first.
fn group_row(lane: u32, work: Work) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < params.slots; slot++) {
        let assignment = work.row * params.slots + slot;
        let expert = expert_of(assignment);
        let start = src_start(work, assignment);
        let gate = gate_of(assignment);
        let value = lane_dot4(lane, work, expert, 0u, work.quad, start);
        if SWIGLU {
            let up = lane_dot4(lane, work, expert, 1u, work.quad, start);
            sum += gate * silu(group_sum(lane, value)) * group_sum(lane, up);
        } else {
            sum += gate * value;
        }
    }
    if SWIGLU {
        return sum;
    }
    return group_sum(lane, sum);
}
