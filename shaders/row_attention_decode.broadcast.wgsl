// row_attention_decode, for software adapters whose subgroups have one size: a workgroup is a subgroup, and takes all query
// rows of a token that share a key/value head, up to 8. Heads count by slot; no learned distances.
// grid   x: tiles of rows of each key/value head of the window, y: tokens, z: the window's splits

//!include "shared/row_attention.wgsl"
//!include "shared/row_tile.wgsl"

@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

//!include "shared/decode_tile.wgsl"

var<private> query_start: u32;

fn query_quad(i: u32) -> vec4<f32> {
    return q[query_start + i];
}

@compute @workgroup_size(LANES)
fn main(@builtin(subgroup_invocation_id) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let span = span_of(group.y, kv_head_of_tile(group));
    if !in_window(span.sequence, kv_head_of_tile(group)) {
        return;
    }
    find_tile(group);
    let own = min(lane % ROWS, tile.count - 1u);
    query_start = query_from(tile.token, tile_head(own));
    let seen = seen_in_split(span, group.z);
    rows_see_nothing();
    attend(lane, span.sequence, tile.kv_head, seen.first, seen.end, all_see(seen.first, seen.end));
    finish(lane);
}
