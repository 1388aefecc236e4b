// The lanes of a workgroup summed in workgroup memory.

//!needs const LANES

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
