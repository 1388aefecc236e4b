// cache_append: the key or the value of each token into its slot of the cache, without a rotation
//
// src    [tokens, 4·src_quads] f32, heads of 4·head_quads from vec4 `first`
// cache  a window: see cache_layout.wgsl
// grid   x: eights of the window's heads, y: tokens

struct Params {
    cache: CacheWindow,
    tokens: u32,
    kv_heads: u32,
    sequences: u32,
    head_quads: u32,
    src_quads: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

//!include "shared/spans.wgsl"

@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> cache: array<vec4<u32>>;

//!include "shared/cache.wgsl"
//!include "shared/cache_write.wgsl"

// Values, not keys.
override VALUES: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let eights = (params.head_quads + 1u) / 2u;
    let head = params.cache.first_head + at.x / eights;
    let i = at.x % eights;
    let token = at.y;
    if at.x / eights >= params.cache.heads || token >= params.tokens {
        return;
    }
    let span = span_of(token, head);
    let is_here = in_window(span.sequence, head) && slot_in_window(span.slot);
    if !is_here || (HEAD_SPANS && span.first == span.end) {
        return;
    }
    let start = token * params.src_quads + params.first + head * params.head_quads + 2u * i;
    var both = Eight(src[start], vec4<f32>(0.0));
    if 2u * i + 1u < params.head_quads {
        both.hi = src[start + 1u];
    }
    var to = key_at(span.sequence, span.slot, head);
    if VALUES {
        to = value_at(span.sequence, span.slot, head);
    }
    write_eight(to + i, both);
}
