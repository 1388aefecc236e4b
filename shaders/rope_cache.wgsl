// rope_cache: rotates query and key heads to their positions and appends key and value to the cache.
//
// For each pair (a, b) = (v[i], v[i + r/2]) of the first r channels of a head and angle φ(position, i):
//     (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ)
// The other channels stay as they are.
//
// spans   [tokens] Span; with HEAD_SPANS [tokens, kv_heads]         angles [.., r/2] (cos φ, sin φ) by position
// q       [tokens · slots, row] f32, heads of d, in place; row = width of a padded row
// keys    [tokens, key_row] f32: all key heads          values [tokens, value_row] f32: all value heads, from value_first
// k_cache, v_cache [sequences, capacity, 8·cache_eights], heads of whole eights: see cache.wgsl
// grid    x: pairs of channels of the (slots · heads) query heads, then eights of the kv_heads key heads, y: tokens

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
    cache_eights: u32,
    capacity: u32,
    sequences: u32,
}

//!include "shared/span.wgsl"
//!include "shared/cache.wgsl"
//!include "shared/cache_write.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read> keys: array<f32>;
@group(0) @binding(5) var<storage, read> values: array<f32>;
@group(0) @binding(6) var<storage, read_write> k_cache: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> v_cache: array<vec4<u32>>;

override HEAD_SPANS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let token = at.y;
    let pairs = params.slots * params.heads * params.half_dim;
    let eights = (params.half_dim + 3u) / 4u;
    if at.x >= pairs + params.kv_heads * eights || token >= params.tokens {
        return;
    }
    let is_key = at.x >= pairs;
    let head = select(at.x / params.half_dim, (at.x - pairs) / eights, is_key);
    var span = spans[token];
    if HEAD_SPANS {
        span = spans[token * params.kv_heads + min(head, params.kv_heads - 1u)];
        if span.keys == 0u {
            return;
        }
    }
    let position = min(span.position, params.capacity - 1u);
    if is_key {
        let row = min(span.sequence, params.sequences - 1u) * params.capacity + position;
        append(token, head, (at.x - pairs) % eights, position, row * params.cache_eights + head * eights);
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

// Channels 8·i … 8·i + 7 of a key and a value into the cache, whose head starts at eight `to`.
fn append(token: u32, head: u32, i: u32, position: u32, to: u32) {
    let column = head * 2u * params.half_dim;
    let key = token * params.key_row + column;
    let value = token * params.value_row + params.value_first + column;
    var new_key = array<f32, 8>();
    var new_value = array<f32, 8>();
    for (var c = 0u; c < min(8u, 2u * params.half_dim - 8u * i); c++) {
        new_key[c] = turned(key, 8u * i + c, position);
        new_value[c] = values[value + 8u * i + c];
    }
    write_key(to + i, eight(new_key));
    write_value(to + i, eight(new_value));
}

fn eight(x: array<f32, 8>) -> Eight {
    return Eight(vec4<f32>(x[0], x[1], x[2], x[3]), vec4<f32>(x[4], x[5], x[6], x[7]));
}

// A channel of the key head that starts at `key`, after the rotation.
fn turned(key: u32, channel: u32, position: u32) -> f32 {
    let half = params.half_rotated;
    let own = keys[key + channel];
    if channel >= 2u * half {
        return own;
    }
    let angle = angles[position * half + channel % half];
    if channel < half {
        return own * angle.x - keys[key + channel + half] * angle.y;
    }
    return own * angle.x + keys[key + channel - half] * angle.y;
}
