// What the row attention kernels share. Query head h of a token (slot-major: h = slot · heads + j) reads
// key/value head (h / group) mod kv_heads and sees the first keys of its sequence, as many as its span says.
//
// spans   [tokens] Span; with HEAD_SPANS [tokens, kv_heads]
// caches  [sequences, capacity, 4·cache_quads], heads of whole eights: see cache.wgsl

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
    kv_quads: u32,
    half_rotated: u32,
}

//!include "shared/span.wgsl"

// Lower than any score; not infinite, so that differences stay numbers.
const LOWEST: f32 = -3.0e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;

// Every head has places of its own for the tokens it takes.
override HEAD_SPANS: bool = false;

// The span of a token's row for a key/value head, clamped to what the cache has.
fn span_of(token: u32, kv_head: u32) -> Span {
    var at = token;
    if HEAD_SPANS {
        at = token * params.kv_heads + kv_head;
    }
    let span = spans[at];
    return Span(
        min(span.position, params.capacity - 1u),
        min(span.sequence, params.sequences - 1u),
        min(span.keys, params.capacity),
    );
}

fn kv_head_of(head: u32) -> u32 {
    return (head / params.group) % params.kv_heads;
}

// Where query head `index` of a token (slot-major over its slots) starts in rows of `quads` vec4s a slot.
fn slot_start(token: u32, index: u32, quads: u32) -> u32 {
    let row = token * params.slots + index / params.heads;
    return row * quads + (index % params.heads) * params.head_quads;
}

// The vec4 at which a key or value of a sequence starts in the cache; even.
fn cache_start(sequence: u32, key: u32, kv_head: u32) -> u32 {
    let head_quads = params.head_quads + params.head_quads % 2u;
    return (sequence * params.capacity + key) * params.cache_quads + kv_head * head_quads;
}
