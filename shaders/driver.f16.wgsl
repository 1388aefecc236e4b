// driver, for devices with 16-bit arithmetic: out[i] = f16(src[2i]) · f16(src[2i + 1]), multiplied in 16 bits
//
// src    [count, 2] f32        out    [count] f32
// grid   x: 64 products each

enable f16;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let i = invocation.x;
    if i < params.count {
        out[i] = f32(f16(src[2u * i]) * f16(src[2u * i + 1u]));
    }
}
