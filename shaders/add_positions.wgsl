// add_positions: x[t] += table[position of t]; with CLASS_TOKEN position 0 holds the class token: x[t] = class + table[0]
//
// spans  [tokens] Span                x  [tokens, 4·quads] f32
// table  [positions, 4·quads] f32     class_token [4·quads] f32
// grid   x: quads, y: tokens

struct Params {
    tokens: u32,
    quads: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> class_token: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> x: array<vec4<f32>>;

override CLASS_TOKEN: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let quad = at.x;
    let token = at.y;
    if quad >= params.quads || token >= params.tokens {
        return;
    }
    let position = min(spans[token].position, arrayLength(&table) / params.quads - 1u);
    let to = token * params.quads + quad;
    var value = x[to];
    if CLASS_TOKEN && position == 0u {
        value = class_token[quad];
    }
    x[to] = value + table[position * params.quads + quad];
}
