// cache_append: cache[sequence][position] = part of src[t], for keys or values that are not rotated
//
// spans  [tokens] Span; with HEAD_SPANS [tokens, heads of a row]
// src    [tokens, 4·src_quads] f32, the part from quad `first`
// cache  [sequences, capacity, 4·cache_quads] f32, the first `quads` of a row
// grid   x: quads, y: tokens

struct Params {
    tokens: u32,
    quads: u32,
    head_quads: u32,
    src_quads: u32,
    first: u32,
    cache_quads: u32,
    capacity: u32,
    sequences: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> cache: array<vec4<f32>>;

override HEAD_SPANS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let quad = at.x;
    let token = at.y;
    if quad >= params.quads || token >= params.tokens {
        return;
    }
    var span = spans[token];
    if HEAD_SPANS {
        span = spans[(token * params.quads + quad) / params.head_quads];
        if span.keys == 0u {
            return;
        }
    }
    let position = min(span.position, params.capacity - 1u);
    let sequence = min(span.sequence, params.sequences - 1u);
    let to = (sequence * params.capacity + position) * params.cache_quads + quad;
    cache[to] = src[token * params.src_quads + params.first + quad];
}
