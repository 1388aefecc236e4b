// routed_matvec, for GPUs that multiply 8-bit integers four at a time, with weights in Q8 or Q4: as the workgroup variant,
// but each block of 8 inputs is rounded to codes of one scale, so that a product is of integers. Q4's minima are multiplied
// with the inputs as they are.
// grid   x: output quads of the part, y: rows

//!include "shared/routed_matvec.wgsl"
//!include "shared/routed_matvec_group.wgsl"
//!include "shared/routed_matvec_workgroup.wgsl"
//!include "shared/packed.wgsl"

fn block_dot4(base: u32, start: u32, block: u32) -> vec4<f32> {
    let lo = src[start + 2u * block];
    let hi = src[start + 2u * block + 1u];
    let most = most_of(lo, hi);
    let scale = scale_of(most);
    let x = codes_of(lo, hi, inverse_of(most));
    let whole = sum_of(lo, hi);
    let products = middle_of(whole, scale, x) + scale * vec4<f32>(vec4<i32>(
        dot_codes(x, row_packed(base, 0u, block)),
        dot_codes(x, row_packed(base, 1u, block)),
        dot_codes(x, row_packed(base, 2u, block)),
        dot_codes(x, row_packed(base, 3u, block)),
    ));
    if WEIGHT_FORMAT == Q8 {
        return q8_scales(base, block / 4u) * products;
    }
    let steps = q4_steps(base, block / 4u);
    return steps.scale * products + steps.minimum * whole;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    compute_quad(lane, group);
}
