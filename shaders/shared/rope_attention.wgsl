// What the kernels share that rotate a decoded token's query and key, append its key and value, and attend.
//
// q       [tokens · slots, 4·q_quads] f32, not rotated       kv [tokens, 4·kv_quads] f32: all keys, not rotated, then all values
// angles  [.., r/4] (cos, sin, cos, sin) by position: of pairs (v[i], v[i + r/2]), r a multiple of 8
// cache   a window, in which nobody reads what is appended: see cache_layout.wgsl

//!include "shared/attention_params.wgsl"

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> angles: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> cache: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

//!include "shared/cache_read.wgsl"
//!include "shared/cache_write.wgsl"

// A position that there are angles for.
fn turning_position(span: Span) -> u32 {
    return min(span.position, arrayLength(&angles) / (params.half_rotated / 2u) - 1u);
}

// The vec4 that turns together with vec4 i of a head; i itself behind those that turn.
fn partner(i: u32) -> u32 {
    let half = params.half_rotated / 4u;
    return select(select(i, i - half, i < 2u * half), i + half, i < half);
}

// Vec4 i of a head, turned to a position: (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ).
fn turned(own: vec4<f32>, other: vec4<f32>, i: u32, position: u32) -> vec4<f32> {
    let half = params.half_rotated / 4u;
    if i >= 2u * half {
        return own;
    }
    let at = 2u * (position * half + i % half);
    let low = angles[at];
    let high = angles[at + 1u];
    let cosines = vec4<f32>(low.xz, high.xz);
    let sines = vec4<f32>(low.yw, high.yw);
    if i < half {
        return own * cosines - other * sines;
    }
    return own * cosines + other * sines;
}

// The token's own key as later steps will read it.
fn own_key(token: u32, kv_head: u32, i: u32, position: u32) -> vec4<f32> {
    let head = token * params.kv_quads + kv_head * params.key_quads;
    return as_cached(turned(kv[head + i], kv[head + partner(i)], i, position));
}

fn own_value(token: u32, kv_head: u32, i: u32) -> vec4<f32> {
    let head = token * params.kv_quads + params.kv_heads * params.key_quads + kv_head * params.value_quads;
    return as_cached(kv[head + i]);
}

// Appends channels 8·i … 8·i + 7 of the token's own key and value.
fn append(token: u32, kv_head: u32, i: u32, span: Span) {
    if i < params.cache.key_eights {
        let position = turning_position(span);
        var key = Eight(own_key(token, kv_head, 2u * i, position), vec4<f32>(0.0));
        if 2u * i + 1u < params.key_quads {
            key.hi = own_key(token, kv_head, 2u * i + 1u, position);
        }
        write_eight(key_at(span.sequence, span.slot, kv_head) + i, key);
    }
    if i < params.cache.value_eights {
        var value = Eight(own_value(token, kv_head, 2u * i), vec4<f32>(0.0));
        if 2u * i + 1u < params.value_quads {
            value.hi = own_value(token, kv_head, 2u * i + 1u);
        }
        write_eight(value_at(span.sequence, span.slot, kv_head) + i, value);
    }
}
