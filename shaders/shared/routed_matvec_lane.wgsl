// What one lane of LANES adds to a row's product: every LANES-th block of each weight row.

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
