// Four outputs of a row, computed by the LANES lanes of a workgroup together. A variant has `block_dot4` (see
// routed_matvec_block.wgsl) and `group_sum`.

//!needs var params, struct Work, fn work_of, fn is_idle, fn store, fn expert_of, fn gate_of, fn src_start, fn quad_start, fn silu, fn block_dot4
//!needs fn group_sum

const LANES: u32 = 64u;

// What a lane adds to the four rows of a quad of an expert's half, times the src row at vec4 index `start`: every LANES-th
// block of each.
fn lane_dot4(lane: u32, work: Work, expert: u32, half: u32, quad: u32, start: u32) -> vec4<f32> {
    let base = quad_start(work, expert, half, quad);
    var sum = vec4<f32>(0.0);
    for (var block = lane; block < params.in_blocks; block += LANES) {
        sum += block_dot4(base, start, block);
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

// The row and quad of a workgroup.
fn compute_quad(lane: u32, group: vec3<u32>) {
    let work = work_of(group, 1u);
    if is_idle(work) {
        return;
    }
    let sum = group_row(lane, work);
    if lane == 0u {
        store(work, work.quad, sum);
    }
}
