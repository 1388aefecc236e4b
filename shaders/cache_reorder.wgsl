// cache_reorder: to[s][p] = from_cache[parents[s]][p] for the first `positions` positions: sequences go on from others'
// keys or values, as beam search wants it
//
// parents [sequences] u32      from_cache, to_cache [sequences, capacity, 4·row_quads] u32, whatever they hold
// grid    x: vec4s of `positions` rows, y: sequences

struct Params {
    row_quads: u32,
    positions: u32,
    capacity: u32,
    sequences: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parents: array<u32>;
@group(0) @binding(2) var<storage, read> from_cache: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> to_cache: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.row_quads * params.positions || at.y >= params.sequences {
        return;
    }
    let parent = min(parents[at.y], params.sequences - 1u);
    let row = params.capacity * params.row_quads;
    to_cache[at.y * row + at.x] = from_cache[parent * row + at.x];
}
