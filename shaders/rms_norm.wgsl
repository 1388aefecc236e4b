// rms_norm: y[i] = x[r] · rsqrt(mean(x[r]²) + eps) · weight, with r = rows[i]
//
// x      [any, width] f32, padded with zeros to blocks of 4     weight [width] f32
// rows   [count] u32, the rows of x to norm                     y      [count, width] f32
// grid   y: count, one workgroup a row

struct Params {
    count: u32,
    quads: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

//!include "shared/reduce.wgsl"

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.y;
    let start = min(rows[row], arrayLength(&x) / params.quads - 1u) * params.quads;
    var squares = 0.0;
    for (var i = lane; i < params.quads; i += LANES) {
        let value = x[start + i];
        squares += dot(value, value);
    }
    let scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.width) + params.eps);
    for (var i = lane; i < params.quads; i += LANES) {
        y[row * params.quads + i] = x[start + i] * scale * weight[i];
    }
}
