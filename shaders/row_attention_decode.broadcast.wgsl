// row_attention_decode, for software adapters whose subgroups have one size: a workgroup is a subgroup, and takes all query
// rows of a token that share a key/value head, up to 8. Heads count by slot; no learned distances.
// grid   x: tiles of rows of each key/value head, y: tokens, z: splits

//!include "shared/row_attention.wgsl"
//!include "shared/row_tile.wgsl"

@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;

//!include "shared/decode_tile.wgsl"

var<private> query_start: u32;

fn query_quad(i: u32) -> vec4<f32> {
    return q[query_start + i];
}

@compute @workgroup_size(LANES)
fn main(@builtin(subgroup_invocation_id) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    find_tile(group);
    let own = min(lane % ROWS, tile.count - 1u);
    query_start = slot_start(tile.token, tile_head(own), params.q_quads);
    let span = span_of(group.y, group.x % params.kv_heads);
    let first = group.z * params.split_keys;
    let end = min(first + params.split_keys, span.keys);
    rows_see_nothing();
    attend(lane, span.sequence, tile.kv_head, first, end, Visible(vec4<u32>(span.keys), vec4<u32>(span.keys)));
    finish(lane);
}
