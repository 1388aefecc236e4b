// What the row attention kernels share. Query head h of a token (slot-major: h = slot · heads + j) reads
// key/value head (h / group) mod kv_heads and sees the first keys of its sequence, as many as its span says.
//
// spans   [tokens] Span; with HEAD_SPANS [tokens, kv_heads]
// q       [tokens · slots, 4·q_quads] f32            k_cache, v_cache [sequences, capacity, 4·cache_quads] f32

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    group: u32,
    head_quads: u32,
    q_quads: u32,
    out_quads: u32,
    cache_quads: u32,
    capacity: u32,
    sequences: u32,
    splits: u32,
    split_keys: u32,
    first: u32,
    scale: f32,
    clip: u32,
}

//!include "shared/span.wgsl"

// Lower than any score; not infinite, so that differences stay numbers.
const LOWEST: f32 = -3.0e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> k_cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> v_cache: array<vec4<f32>>;

// Every head has places of its own for the tokens it takes.
override HEAD_SPANS: bool = false;

// The span of a token's row for a key/value head, clamped to what the cache has.
fn span_of(token: u32, kv_head: u32) -> Span {
    var at = token;
    if HEAD_SPANS {
        at = token * params.kv_heads + kv_head;
    }
    let span = spans[at];
    return Span(span.position, min(span.sequence, params.sequences - 1u), min(span.keys, params.capacity));
}

fn kv_head_of(head: u32) -> u32 {
    return (head / params.group) % params.kv_heads;
}

// Where query head `index` of a token (slot-major over its slots) starts in rows of `quads` vec4s a slot.
fn slot_start(token: u32, index: u32, quads: u32) -> u32 {
    let row = token * params.slots + index / params.heads;
    return row * quads + (index % params.heads) * params.head_quads;
}

// Where a key or value of a sequence starts in the cache.
fn cache_start(sequence: u32, key: u32, kv_head: u32) -> u32 {
    return (sequence * params.capacity + key) * params.cache_quads + kv_head * params.head_quads;
}
