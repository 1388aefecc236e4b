// rope_cache: rotates query and key heads to their positions and appends key and value to the cache.
//
// For each pair (a, b) = (v[i], v[i + r/2]) of the first r channels of a head and angle φ(position, i):
//     (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ)
// The other channels stay as they are.
//
// spans   [tokens] Span; with HEAD_SPANS [tokens, kv_heads]         angles [.., r/2] (cos φ, sin φ) by position
// q       [tokens · slots, row] f32, heads of d, in place; row = width of a padded row
// keys    [tokens, key_row] f32: all key heads          values [tokens, value_row] f32: all value heads, from value_first
// k_cache, v_cache [sequences, capacity, cache_row] f32
// grid    x: pairs of channels of (slots · heads query heads, then kv_heads key heads), y: tokens

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    half_dim: u32,
    half_rotated: u32,
    q_row: u32,
    key_row: u32,
    value_row: u32,
    value_first: u32,
    cache_row: u32,
    capacity: u32,
    sequences: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read> keys: array<f32>;
@group(0) @binding(5) var<storage, read> values: array<f32>;
@group(0) @binding(6) var<storage, read_write> k_cache: array<f32>;
@group(0) @binding(7) var<storage, read_write> v_cache: array<f32>;

override HEAD_SPANS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x / params.half_dim;
    let pair = at.x % params.half_dim;
    let token = at.y;
    let query_heads = params.slots * params.heads;
    if head >= query_heads + params.kv_heads || token >= params.tokens {
        return;
    }
    let is_key = head >= query_heads;
    let kv_head = select(head, head - query_heads, is_key);
    var span = spans[token];
    if HEAD_SPANS {
        span = spans[token * params.kv_heads + min(kv_head, params.kv_heads - 1u)];
        if span.keys == 0u {
            return;
        }
    }
    let position = min(span.position, params.capacity - 1u);
    let sequence = min(span.sequence, params.sequences - 1u);

    // The two channels of this pair: partners where they turn, neighbours behind.
    let turns = pair < params.half_rotated;
    let low = select(2u * pair, pair, turns);
    let high = select(2u * pair + 1u, pair + params.half_rotated, turns);
    var angle = vec2<f32>(1.0, 0.0);
    if turns {
        angle = angles[position * params.half_rotated + pair];
    }

    if !is_key {
        let row = token * params.slots + head / params.heads;
        let start = row * params.q_row + (head % params.heads) * 2u * params.half_dim;
        let a = q[start + low];
        let b = q[start + high];
        q[start + low] = a * angle.x - b * angle.y;
        q[start + high] = b * angle.x + a * angle.y;
        return;
    }

    let column = kv_head * 2u * params.half_dim;
    let key = token * params.key_row + column;
    let value = token * params.value_row + params.value_first + column;
    let to = (sequence * params.capacity + position) * params.cache_row + column;
    let a = keys[key + low];
    let b = keys[key + high];
    k_cache[to + low] = a * angle.x - b * angle.y;
    k_cache[to + high] = b * angle.x + a * angle.y;
    v_cache[to + low] = values[value + low];
    v_cache[to + high] = values[value + high];
}
