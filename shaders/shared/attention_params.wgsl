// What the row attention kernels share. Query head h of a token (slot-major: h = slot · heads + j) reads
// key/value head (h / group) mod kv_heads and sees the slots of its sequence that its span says. A dispatch takes the rows
// whose key/value head is in its window, and of what they see the slots that are, too.

struct Params {
    cache: CacheWindow,
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    group: u32,
    key_quads: u32,
    value_quads: u32,
    q_quads: u32,
    out_quads: u32,
    sequences: u32,
    // Of a row, in all sections; where there are more, each window has splits / sections of them.
    splits: u32,
    split_keys: u32,
    first_route: u32,
    scale: f32,
    clip: u32,
    kv_quads: u32,
    half_rotated: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

//!include "shared/spans.wgsl"
//!include "shared/query_heads.wgsl"

// Lower than any score; not infinite, so that differences stay numbers.
const LOWEST: f32 = -3.0e38;

// The slots from `first` to before `end`, where that is not before `first`.
struct Slots {
    first: u32,
    end: u32,
}

// What a row sees of the window, in the window's n-th split.
fn seen_in_split(span: Span, n: u32) -> Slots {
    let first = max(span.first, params.cache.first_slot) + n * params.split_keys;
    let end = min(span.end, params.cache.first_slot + params.cache.slots);
    return Slots(first, min(first + params.split_keys, end));
}

// The window's n-th split among those of a row.
fn split_of_window(n: u32) -> u32 {
    return params.cache.section * (params.splits / params.cache.sections) + n;
}

fn out_to(token: u32, index: u32) -> u32 {
    return slot_start(token, index, params.out_quads, params.value_quads);
}
