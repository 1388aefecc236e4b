// combine: x[t] (+)= bias + Σ_s gates[t][s] · rows[t·k + s], slots in order
//
// rows   [tokens · k, width] f32       gates [.., tokens, k] f32, from index `first`
// bias   [width] f32, with BIAS        x     [tokens, width] f32
// grid   x: quads of a row, y: tokens

struct Params {
    tokens: u32,
    quads: u32,
    slots: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gates: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> x: array<vec4<f32>>;

override BIAS: bool = false;
// Without gates every slot counts whole.
override GATED: bool = true;
// Adds to x instead of overwriting it.
override RESIDUAL: bool = true;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let quad = at.x;
    let token = at.y;
    if quad >= params.quads || token >= params.tokens {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < params.slots; slot++) {
        let assignment = token * params.slots + slot;
        var gate = 1.0;
        if GATED {
            gate = gates[params.first + assignment];
        }
        // A row with gate 0 may not have been written.
        if gate != 0.0 {
            sum += gate * rows[assignment * params.quads + quad];
        }
    }
    if BIAS {
        sum += bias[quad];
    }
    let to = token * params.quads + quad;
    if RESIDUAL {
        sum += x[to];
    }
    x[to] = sum;
}
