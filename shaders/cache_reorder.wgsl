// cache_reorder: to[s][p] = from_cache[parents[s]][p] for the first slots of a section: sequences go on from others' keys or
// values, as beam search wants it
//
// parents [sequences] u32
// from_cache, to_cache   windows, of which each has keys or values [its sequences, slots, 4·row_quads] u32 from vec4 from_at
//                        or to_at on, whatever they hold: those of sequences from_first … and to_first …
// grid    x: vec4s of `filled` slots, y: the sequences of to_cache

struct Params {
    row_quads: u32,
    filled: u32,
    slots: u32,
    sequences: u32,
    from_at: u32,
    from_first: u32,
    from_sequences: u32,
    to_at: u32,
    to_first: u32,
    to_sequences: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parents: array<u32>;
@group(0) @binding(2) var<storage, read> from_cache: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> to_cache: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.row_quads * params.filled || at.y >= params.to_sequences {
        return;
    }
    // What lies before the first wraps to more than there are.
    let parent = min(parents[params.to_first + at.y], params.sequences - 1u) - params.from_first;
    if parent >= params.from_sequences {
        return;
    }
    let sequence_quads = params.slots * params.row_quads;
    to_cache[params.to_at + at.y * sequence_quads + at.x] =
        from_cache[params.from_at + parent * sequence_quads + at.x];
}
