// rope_cache: rotates query and key heads to their positions and appends key and value to the cache.
//
// For each pair (a, b) = (v[i], v[i + r/2]) of the first r channels of a head and angle φ(position, i):
//     (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ)
// The other channels stay as they are.
//
// angles  [.., r/2] (cos φ, sin φ) by position
// q       [tokens · slots, row] f32, heads of d, in place; row = width of a padded row
// keys    [tokens, key_row] f32: all key heads          values [tokens, value_row] f32: all value heads, from value_first
// cache   a window: see cache_layout.wgsl
// grid    x: pairs of channels of the query heads, then eights of the window's key/value heads, y: tokens

struct Params {
    cache: CacheWindow,
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    sequences: u32,
    // Of a token's queries: all of them with the first window, none with the others.
    turning_heads: u32,
    half_dim: u32,
    half_rotated: u32,
    q_row: u32,
    key_row: u32,
    value_row: u32,
    value_first: u32,
    value_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

//!include "shared/spans.wgsl"

@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read> keys: array<f32>;
@group(0) @binding(5) var<storage, read> values: array<f32>;
@group(0) @binding(6) var<storage, read_write> cache: array<vec4<u32>>;

//!include "shared/cache.wgsl"
//!include "shared/cache_write.wgsl"
//!include "shared/turn.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let token = at.y;
    let pairs = params.turning_heads * params.half_dim;
    let eights = max(params.cache.key_eights, params.cache.value_eights);
    if at.x >= pairs + params.cache.heads * eights || token >= params.tokens {
        return;
    }
    let is_key = at.x >= pairs;
    let head = select(at.x / params.half_dim, params.cache.first_head + (at.x - pairs) / eights, is_key);
    let span = span_of(token, min(head, params.kv_heads - 1u));
    if HEAD_SPANS && span.first == span.end {
        return;
    }
    let position = min(span.position, arrayLength(&angles) / params.half_rotated - 1u);
    if is_key {
        if in_window(span.sequence, head) && slot_in_window(span.slot) {
            append(token, head, (at.x - pairs) % eights, position, span);
        }
        return;
    }

    // The two channels of this pair: partners where they turn, neighbours behind.
    let pair = at.x % params.half_dim;
    let turns = pair < params.half_rotated;
    let low = select(2u * pair, pair, turns);
    let high = select(2u * pair + 1u, pair + params.half_rotated, turns);
    var angle = vec2<f32>(1.0, 0.0);
    if turns {
        angle = angles[position * params.half_rotated + pair];
    }
    let row = token * params.slots + head / params.heads;
    let start = row * params.q_row + (head % params.heads) * 2u * params.half_dim;
    let a = q[start + low];
    let b = q[start + high];
    q[start + low] = a * angle.x - b * angle.y;
    q[start + high] = b * angle.x + a * angle.y;
}

// Channels 8·i … 8·i + 7 of a key and a value into the cache.
fn append(token: u32, head: u32, i: u32, position: u32, span: Span) {
    if i < params.cache.key_eights {
        let start = token * params.key_row + head * 2u * params.half_dim;
        var key = array<f32, 8>();
        for (var c = 0u; c < min(8u, 2u * params.half_dim - 8u * i); c++) {
            key[c] = turned(start, 8u * i + c, position);
        }
        write_eight(key_at(span.sequence, span.slot, head) + i, eight(key));
    }
    if i < params.cache.value_eights {
        let start = token * params.value_row + params.value_first + head * params.value_dim;
        var value = array<f32, 8>();
        for (var c = 0u; c < min(8u, params.value_dim - 8u * i); c++) {
            value[c] = values[start + 8u * i + c];
        }
        write_eight(value_at(span.sequence, span.slot, head) + i, eight(value));
    }
}

fn eight(x: array<f32, 8>) -> Eight {
    return Eight(vec4<f32>(x[0], x[1], x[2], x[3]), vec4<f32>(x[4], x[5], x[6], x[7]));
}

fn channel_at(i: u32) -> f32 {
    return keys[i];
}
