// Writes `cache`, which is in scope, channels 8·at … 8·at + 7 of the window. Goes with cache.wgsl.

//!needs var cache, fn pack_quad

fn write_eight(at: u32, value: Eight) {
    if CACHE_F16 {
        cache[at] = vec4<u32>(pack_quad(value.lo), pack_quad(value.hi));
        return;
    }
    cache[2u * at] = bitcast<vec4<u32>>(value.lo);
    cache[2u * at + 1u] = bitcast<vec4<u32>>(value.hi);
}
