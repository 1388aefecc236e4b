// Reads `k_cache` and `v_cache`, which are in scope.

//!needs var k_cache, var v_cache

//!include "shared/cache.wgsl"

// Channels 4·at … 4·at + 3 of all keys.
fn key_quad(at: u32) -> vec4<f32> {
    if CACHE_F16 {
        let words = k_cache[at / 2u];
        return unpack_quad(select(words.xy, words.zw, at % 2u == 1u));
    }
    return bitcast<vec4<f32>>(k_cache[at]);
}

fn value_quad(at: u32) -> vec4<f32> {
    if CACHE_F16 {
        let words = v_cache[at / 2u];
        return unpack_quad(select(words.xy, words.zw, at % 2u == 1u));
    }
    return bitcast<vec4<f32>>(v_cache[at]);
}

// Channels 8·at … 8·at + 7 of all keys.
fn key_eight(at: u32) -> Eight {
    if CACHE_F16 {
        let words = k_cache[at];
        return Eight(unpack_quad(words.xy), unpack_quad(words.zw));
    }
    return Eight(bitcast<vec4<f32>>(k_cache[2u * at]), bitcast<vec4<f32>>(k_cache[2u * at + 1u]));
}
