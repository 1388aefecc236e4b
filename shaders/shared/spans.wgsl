// The spans of a step.
//
// spans   [tokens] Span; with HEAD_SPANS [tokens, kv_heads]

//!needs var params

//!include "shared/span.wgsl"
//!include "shared/cache_layout.wgsl"

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
    let end = min(span.end, params.cache.capacity);
    return Span(
        span.position,
        min(span.sequence, params.sequences - 1u),
        min(span.slot, params.cache.capacity - 1u),
        min(span.first, end),
        end,
    );
}
