// What row attention reads that finds keys and values in the cache.
//
// q       [tokens · slots, 4·q_quads] f32
// cache   a window: see cache_layout.wgsl

//!include "shared/attention_params.wgsl"

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> cache: array<vec4<u32>>;

//!include "shared/cache_read.wgsl"
