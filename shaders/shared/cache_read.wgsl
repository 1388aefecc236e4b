// Reads `cache`, which is in scope.

//!needs var cache

//!include "shared/cache.wgsl"

// Channels 4·at … 4·at + 3 of the window.
fn cached_quad(at: u32) -> vec4<f32> {
    if CACHE_F16 {
        let words = cache[at / 2u];
        return unpack_quad(select(words.xy, words.zw, at % 2u == 1u));
    }
    return bitcast<vec4<f32>>(cache[at]);
}

// Channels 8·at … 8·at + 7 of the window.
fn cached_eight(at: u32) -> Eight {
    if CACHE_F16 {
        let words = cache[at];
        return Eight(unpack_quad(words.xy), unpack_quad(words.zw));
    }
    return Eight(bitcast<vec4<f32>>(cache[2u * at]), bitcast<vec4<f32>>(cache[2u * at + 1u]));
}
