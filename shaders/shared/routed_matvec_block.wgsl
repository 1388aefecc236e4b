// What block `block` of 8 inputs of the src row at vec4 index `start` adds to the four rows of the quad at vec4 `base`.

//!needs var src, fn quad_eight

fn block_dot4(base: u32, start: u32, block: u32) -> vec4<f32> {
    let lo = src[start + 2u * block];
    let hi = src[start + 2u * block + 1u];
    let w = quad_eight(base, block);
    return lo * mat4x4<f32>(w.r0.lo, w.r1.lo, w.r2.lo, w.r3.lo)
        + hi * mat4x4<f32>(w.r0.hi, w.r1.hi, w.r2.hi, w.r3.hi);
}
