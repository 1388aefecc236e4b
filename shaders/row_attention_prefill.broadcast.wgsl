// row_attention_prefill, for software adapters whose subgroups have one size: a workgroup is a subgroup, and takes a tile of
// ROWS rows.
// grid    x: tiles of rows, y: key/value heads of the window, z: sequences

//!include "shared/row_attention.wgsl"
//!include "shared/row_tile.wgsl"

@group(0) @binding(4) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

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

fn row_head(row: u32) -> u32 {
    return head_of(kv_head, (first_row + row) % (params.slots * params.heads / params.kv_heads));
}

fn store(row: u32, i: u32, sum: vec4<f32>, row_highest: f32, row_total: f32) {
    if row < row_count {
        // A row without keys is 0.
        out[out_to(row_token(row), row_head(row)) + i] = select(vec4<f32>(0.0), sum / row_total, row_total > 0.0);
    }
}

// A number of each of the first four rows.
fn first_four(own: u32) -> vec4<u32> {
    return vec4<u32>(
        subgroupBroadcast(own, 0u), subgroupBroadcast(own, 1u),
        subgroupBroadcast(own, 2u), subgroupBroadcast(own, 3u));
}

fn next_four(own: u32) -> vec4<u32> {
    return vec4<u32>(
        subgroupBroadcast(own, 4u), subgroupBroadcast(own, 5u),
        subgroupBroadcast(own, 6u), subgroupBroadcast(own, 7u));
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
    let head = params.cache.first_head + group.y;
    // What later tokens of a sequence see neither starts nor ends before.
    let earliest = span_of(range.x + first / heads, head);
    let last = span_of(range.x + (first + count - 1u) / heads, head);
    if !in_window(last.sequence, head) {
        return;
    }
    first_token = range.x;
    kv_head = head;
    first_row = first;
    row_count = count;
    let own = min(lane % ROWS, count - 1u);
    query_start = query_from(row_token(own), row_head(own));

    let sees = span_of(row_token(own), head);
    var visible = Visible();
    visible.first_a = first_four(sees.first);
    visible.end_a = first_four(sees.end);
    if ROWS > 4u {
        visible.first_b = next_four(sees.first);
        visible.end_b = next_four(sees.end);
    }
    rows_see_nothing();
    attend(lane, last.sequence, head, earliest.first, last.end, visible);
    finish(lane);
}
