// Writes `k_cache` and `v_cache`, which are in scope, channels 8·at … 8·at + 7. Goes with cache.wgsl.

//!needs var k_cache, var v_cache, fn pack_quad

fn write_key(at: u32, value: Eight) {
    if CACHE_F16 {
        k_cache[at] = vec4<u32>(pack_quad(value.lo), pack_quad(value.hi));
        return;
    }
    k_cache[2u * at] = bitcast<vec4<u32>>(value.lo);
    k_cache[2u * at + 1u] = bitcast<vec4<u32>>(value.hi);
}

fn write_value(at: u32, value: Eight) {
    if CACHE_F16 {
        v_cache[at] = vec4<u32>(pack_quad(value.lo), pack_quad(value.hi));
        return;
    }
    v_cache[2u * at] = bitcast<vec4<u32>>(value.lo);
    v_cache[2u * at + 1u] = bitcast<vec4<u32>>(value.hi);
}
