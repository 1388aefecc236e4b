// routed_matvec, for few rows: one invocation computes four outputs of one row, no workgroup memory.
// grid   x: output quads of the part, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/routed_matvec_block.wgsl"

// The four rows of a quad of an expert's half, times the src row at vec4 index `start`.
fn dot4(work: Work, expert: u32, half: u32, quad: u32, start: u32) -> vec4<f32> {
    let base = quad_start(work, expert, half, quad);
    var sum = vec4<f32>(0.0);
    for (var block = 0u; block < params.in_blocks; block++) {
        sum += block_dot4(base, start, block);
    }
    return sum;
}

@compute @workgroup_size(8)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let work = work_of(group, 8u);
    let quad = work.quad + lane;
    if is_idle(work) || quad >= quads_of(work) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < params.slots; slot++) {
        let assignment = work.row * params.slots + slot;
        let expert = expert_of(assignment);
        let start = src_start(work, assignment);
        var value = dot4(work, expert, 0u, quad, start);
        if SWIGLU {
            value = silu(value) * dot4(work, expert, 1u, quad, start);
        }
        sum += gate_of(assignment) * value;
    }
    store(work, quad, sum);
}
