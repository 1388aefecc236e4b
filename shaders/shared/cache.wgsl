// Keys and values in storage: f32, or f16 two to a word. A buffer is an array<vec4<u32>>, and a head takes whole eights
// of channels, so that an invocation that writes one owns its words.

override CACHE_F16: bool = false;

// Eight channels of a head.
struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

fn pack_quad(value: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw));
}

fn unpack_quad(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

// A value as the cache gives it back.
fn as_cached(value: vec4<f32>) -> vec4<f32> {
    if CACHE_F16 {
        return unpack_quad(pack_quad(value));
    }
    return value;
}
