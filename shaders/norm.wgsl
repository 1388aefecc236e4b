// norm: y[i] = (x[r] − μ) · rsqrt(σ² + eps) · weight + bias, with r = rows[i], r = i with ALL_ROWS, or x = y IN_PLACE
//
// LayerNorm has μ = mean(x[r]) and σ² = mean((x[r] − μ)²); RMSNorm has μ = 0, σ² = mean(x[r]²) and no bias.
//
// x      [any, width] f32, padded with zeros to blocks of 4     weights [1 or 2, width] f32: weight, then bias
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
@group(0) @binding(2) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

override LAYER_NORM: bool = false;
override ALL_ROWS: bool = false;
override IN_PLACE: bool = false;

//!include "shared/reduce.wgsl"

fn input(at: u32) -> vec4<f32> {
    if IN_PLACE {
        return y[at];
    }
    return x[at];
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    var row = group.y;
    if !ALL_ROWS && !IN_PLACE {
        row = min(rows[group.y], arrayLength(&x) / params.quads - 1u);
    }
    let start = row * params.quads;
    let to = group.y * params.quads;

    var mean = 0.0;
    if LAYER_NORM {
        var total = 0.0;
        for (var i = lane; i < params.quads; i += LANES) {
            total += dot(input(start + i), vec4<f32>(1.0));
        }
        mean = workgroup_sum(lane, total) / f32(params.width);
    }
    var squares = 0.0;
    for (var i = lane; i < params.quads; i += LANES) {
        // The padding is not part of the row: without the mean it is zero no more.
        let columns = 4u * i + vec4<u32>(0u, 1u, 2u, 3u);
        let value = select(vec4<f32>(0.0), input(start + i) - mean, columns < vec4<u32>(params.width));
        squares += dot(value, value);
    }
    let scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.width) + params.eps);
    for (var i = lane; i < params.quads; i += LANES) {
        var value = (input(start + i) - mean) * scale * weights[i];
        if LAYER_NORM {
            value += weights[params.quads + i];
        }
        y[to + i] = value;
    }
}
