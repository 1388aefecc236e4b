// The lanes of a workgroup summed in workgroup memory, and what they are launched by.

var<workgroup> partial_sums: array<vec4<f32>, LANES>;

fn group_sum(lane: u32, value: vec4<f32>) -> vec4<f32> {
    partial_sums[lane] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if lane < step {
            partial_sums[lane] += partial_sums[lane + step];
        }
        workgroupBarrier();
    }
    let sum = partial_sums[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let work = work_of(group, 1u);
    if is_idle(work) {
        return;
    }
    let sum = group_row(lane, work);
    if lane == 0u {
        store(work, work.quad, sum);
    }
}
