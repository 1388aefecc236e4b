// row_attention_prefill, for software adapters whose subgroups have one size: a workgroup is a subgroup, and takes a tile of
// ROWS rows.
// grid    x: tiles of rows, y: key/value heads, z: sequences

//!include "shared/row_attention.wgsl"
//!include "shared/row_tile.wgsl"

@group(0) @binding(5) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

// The tile: the first token of its sequence in this step, its key/value head, its first row and how many it has.
var<private> first_token: u32;
var<private> kv_head: u32;
var<private> first_row: u32;
var<private> row_count: u32;

// Where this lane's query starts.
var<private> query_start: u32;

fn query_quad(i: u32) -> vec4<f32> {
    return q[query_start + i];
}

fn row_token(row: u32) -> u32 {
    return first_token + (first_row + row) / (params.slots * params.heads / params.kv_heads);
}

fn row_start(row: u32, quads: u32) -> u32 {
    let index = (first_row + row) % (params.slots * params.heads / params.kv_heads);
    return slot_start(row_token(row), head_of(kv_head, index), quads);
}

fn store(row: u32, i: u32, sum: vec4<f32>, row_highest: f32, row_total: f32) {
    if row < row_count {
        // A row without keys is 0.
        out[row_start(row, params.out_quads) + i] = select(vec4<f32>(0.0), sum / row_total, row_total > 0.0);
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(subgroup_invocation_id) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let range = ranges[group.z];
    let heads = params.slots * params.heads / params.kv_heads;
    let first = group.x * ROWS;
    if first >= range.y * heads {
        return;
    }
    let count = min(ROWS, range.y * heads - first);
    first_token = range.x;
    kv_head = group.y;
    first_row = first;
    row_count = count;
    let own = min(lane % ROWS, count - 1u);
    query_start = row_start(own, params.q_quads);

    // Later tokens of a sequence see no fewer keys.
    let last = span_of(range.x + (first + count - 1u) / heads, group.y);
    let sees = span_of(row_token(own), group.y).keys;
    var visible = Visible(
        vec4<u32>(
            subgroupBroadcast(sees, 0u), subgroupBroadcast(sees, 1u),
            subgroupBroadcast(sees, 2u), subgroupBroadcast(sees, 3u)),
        vec4<u32>(0u),
    );
    if ROWS > 4u {
        visible.b = vec4<u32>(
            subgroupBroadcast(sees, 4u), subgroupBroadcast(sees, 5u),
            subgroupBroadcast(sees, 6u), subgroupBroadcast(sees, 7u));
    }
    rows_see_nothing();
    attend(lane, last.sequence, group.y, 0u, last.keys, visible);
    finish(lane);
}
