// gather_heads: out[i, a] = src[t_i, the slot in which token t_i has head h_a], zeros where it has not
//
// src      [tokens · slots, 4·row_quads] f32: `heads` heads of `quads` quads each, behind the first `first_quad` of a row
// asked    [asked_heads] u32: heads, then [asked_tokens] u32: tokens of the step. With ROUTED head j of expert e is e · heads + j,
//          otherwise head j of slot s is s · heads + j
// chosen   [.., tokens, slots] u32, from index `first`: the expert of each slot
// out      [asked_tokens, asked_heads, 4·quads] f32
// grid     x: quads of all asked heads, y: asked tokens

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    quads: u32,
    row_quads: u32,
    first_quad: u32,
    first_route: u32,
    asked_heads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> asked: array<u32>;
@group(0) @binding(3) var<storage, read> chosen: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

//!include "shared/asked.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let width = params.asked_heads * params.quads;
    if at.x >= width {
        return;
    }
    let token = asked_token(at.y);
    let index = index_of(token, asked[at.x / params.quads]);
    var quad = vec4<f32>(0.0);
    if index < params.slots * params.heads {
        let row = token * params.slots + index / params.heads;
        let head = params.first_quad + (index % params.heads) * params.quads;
        quad = src[row * params.row_quads + head + at.x % params.quads];
    }
    out[at.y * width + at.x] = quad;
}
