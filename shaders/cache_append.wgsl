// cache_append: cache[sequence][position] = part of src[t], for keys or values that are not rotated
//
// spans  [tokens] Span; with HEAD_SPANS [tokens, heads of a row]
// src    [tokens, 4·src_quads] f32, heads of 4·head_quads from vec4 `first`
// cache  [sequences, capacity, 8·cache_eights], keys or values, heads of whole eights: see cache.wgsl
// grid   x: eights, y: tokens

struct Params {
    tokens: u32,
    heads: u32,
    head_quads: u32,
    src_quads: u32,
    first: u32,
    cache_eights: u32,
    capacity: u32,
    sequences: u32,
}

//!include "shared/span.wgsl"
//!include "shared/cache.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> cache: array<vec4<u32>>;

override HEAD_SPANS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let eights = (params.head_quads + 1u) / 2u;
    let head = at.x / eights;
    let i = at.x % eights;
    let token = at.y;
    if head >= params.heads || token >= params.tokens {
        return;
    }
    var span = spans[token];
    if HEAD_SPANS {
        span = spans[token * params.heads + head];
        if span.keys == 0u {
            return;
        }
    }
    let position = min(span.position, params.capacity - 1u);
    let sequence = min(span.sequence, params.sequences - 1u);
    let to = (sequence * params.capacity + position) * params.cache_eights + at.x;
    let start = token * params.src_quads + params.first + head * params.head_quads + 2u * i;
    let lo = src[start];
    var hi = vec4<f32>(0.0);
    if 2u * i + 1u < params.head_quads {
        hi = src[start + 1u];
    }
    if CACHE_F16 {
        cache[to] = vec4<u32>(pack_quad(lo), pack_quad(hi));
        return;
    }
    cache[2u * to] = bitcast<vec4<u32>>(lo);
    cache[2u * to + 1u] = bitcast<vec4<u32>>(hi);
}
