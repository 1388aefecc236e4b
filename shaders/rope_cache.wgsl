// rope_cache: rotates query and key heads to their positions and appends key and value to the cache.
//
// For each pair (a, b) = (v[i], v[i + d/2]) of a head and angle φ(position, i):
//     (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ)
//
// spans   [tokens] (position, sequence)              angles [.., d/2] (cos φ, sin φ) by position
// q       [tokens · slots, row] f32, heads of d, in place; row = width of a padded row
// kv      [tokens, kv_row] f32: all key heads, then all value heads
// k_cache, v_cache [sequences, capacity, cache_row] f32
// grid    x: pairs of (slots · heads query heads, then kv_heads key heads), y: tokens

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    half_dim: u32,
    q_row: u32,
    kv_row: u32,
    cache_row: u32,
    capacity: u32,
    sequences: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read> kv: array<f32>;
@group(0) @binding(5) var<storage, read_write> k_cache: array<f32>;
@group(0) @binding(6) var<storage, read_write> v_cache: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let half = params.half_dim;
    let head = at.x / half;
    let pair = at.x % half;
    let token = at.y;
    let query_heads = params.slots * params.heads;
    if head >= query_heads + params.kv_heads || token >= params.tokens {
        return;
    }
    let position = min(spans[token].x, params.capacity - 1u);
    let sequence = min(spans[token].y, params.sequences - 1u);
    let angle = angles[position * half + pair];

    if head < query_heads {
        let row = token * params.slots + head / params.heads;
        let start = row * params.q_row + (head % params.heads) * 2u * half + pair;
        let a = q[start];
        let b = q[start + half];
        q[start] = a * angle.x - b * angle.y;
        q[start + half] = b * angle.x + a * angle.y;
        return;
    }

    let column = (head - query_heads) * 2u * half + pair;
    let key = token * params.kv_row + column;
    let value = key + params.kv_heads * 2u * half;
    let to = (sequence * params.capacity + position) * params.cache_row + column;
    let a = kv[key];
    let b = kv[key + half];
    k_cache[to] = a * angle.x - b * angle.y;
    k_cache[to + half] = b * angle.x + a * angle.y;
    v_cache[to] = kv[value];
    v_cache[to + half] = kv[value + half];
}
