// row_attention_prefill: softmax attention for tiles of query rows, with a running maximum and sum, so
// that no score outlives its tile of keys.
//
// The rows of a tile are 8 consecutive (token, slot, head) triples of one sequence that read the same key/value
// head, so each key and value is fetched once for all of them.
//
// ranges  [sequences] (first token, tokens of this step)
// out     in the layout of q
//
// Mesa's llvmpipe ends an invocation after 65,535 turns of all its loops together (LP_MAX_TGSI_LOOP_ITERATIONS),
// silently. A tile of keys takes 101 turns and one for each vec4 of a head: there, 15,000 keys are the most.
//
// grid    x: tiles of 8 rows, y: key/value heads of the window, z: sequences; one workgroup each

//!include "shared/row_attention.wgsl"

@group(0) @binding(4) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const LANES: u32 = 64u;
const ROWS: u32 = 8u;
const KEYS: u32 = 32u;
const MAX_HEAD_QUADS: u32 = 32u;

var<workgroup> query: array<vec4<f32>, 256>;     // [ROWS, MAX_HEAD_QUADS]
var<workgroup> weight: array<f32, 256>;          // [ROWS, KEYS]
var<workgroup> row_highest: array<f32, ROWS>;
var<workgroup> row_rescale: array<f32, ROWS>;
var<workgroup> row_total: array<f32, ROWS>;

// The token and the query head of a row of this workgroup's tile.
struct Row {
    token: u32,
    head: u32,
}

// Query heads that read key/value head c are h = c·group + i (i < group), repeated every kv_heads·group heads.
fn row_at(range: vec2<u32>, kv_head: u32, index: u32) -> Row {
    let heads = params.slots * params.heads / params.kv_heads;
    let i = index % heads;
    let head = (i / params.group) * params.kv_heads * params.group + kv_head * params.group + i % params.group;
    return Row(range.x + index / heads, head);
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let range = ranges[group.z];
    let kv_head = params.cache.first_head + group.y;
    let rows = range.y * (params.slots * params.heads / params.kv_heads);
    let first = group.x * ROWS;
    if first >= rows {
        return;
    }
    let count = min(ROWS, rows - first);
    // What later tokens of a sequence see neither starts nor ends before.
    let first_seen = span_of(row_at(range, kv_head, first).token, kv_head).first;
    let last_row = span_of(row_at(range, kv_head, first + count - 1u).token, kv_head);
    let sequence = last_row.sequence;
    let keys = last_row.end;
    if !in_window(sequence, kv_head) {
        return;
    }

    for (var i = lane; i < ROWS * params.key_quads; i += LANES) {
        let row = row_at(range, kv_head, first + min(i / params.key_quads, count - 1u));
        let column = i % params.key_quads;
        query[(i / params.key_quads) * MAX_HEAD_QUADS + column] =
            q[query_from(row.token, row.head) + column] * params.scale;
    }
    if lane < ROWS {
        row_highest[lane] = LOWEST;
        row_total[lane] = 0.0;
    }
    workgroupBarrier();

    // Scores: a lane takes one key and four rows. Softmax: eight lanes take one row, four keys each.
    let key_lane = lane % KEYS;
    let first_row = lane / KEYS * 4u;
    let softmax_row = lane / 8u;
    let softmax_key = lane % 8u * 4u;
    let row_token = row_at(range, kv_head, first + min(softmax_row, count - 1u)).token;
    let row_sees = span_of(row_token, kv_head);
    // Values: `team` lanes for each row group, one vec4 column a lane and step of 16 columns.
    let column = lane % 16u;
    let value_row = lane / 16u * 2u;

    var sum0a = vec4<f32>(0.0); var sum0b = vec4<f32>(0.0);
    var sum1a = vec4<f32>(0.0); var sum1b = vec4<f32>(0.0);
    for (var start = first_seen; start < keys; start += KEYS) {
        let key = start + key_lane;
        var scores = vec4<f32>(LOWEST);
        if key < keys {
            let k_from = 2u * key_at(sequence, key, kv_head);
            scores = vec4<f32>(0.0);
            for (var i = 0u; i < params.key_quads; i++) {
                let k = cached_quad(k_from + i);
                let at = first_row * MAX_HEAD_QUADS + i;
                scores += vec4<f32>(
                    dot(k, query[at]), dot(k, query[at + MAX_HEAD_QUADS]),
                    dot(k, query[at + 2u * MAX_HEAD_QUADS]), dot(k, query[at + 3u * MAX_HEAD_QUADS]));
            }
        }
        let to = first_row * KEYS + key_lane;
        weight[to] = scores.x;
        weight[to + KEYS] = scores.y;
        weight[to + 2u * KEYS] = scores.z;
        weight[to + 3u * KEYS] = scores.w;
        workgroupBarrier();

        let hidden = clamp(row_sees.first, start, start + KEYS) - start;
        let visible = clamp(row_sees.end, start, start + KEYS) - start;
        let highest = row_highest[softmax_row];
        var new_highest = highest;
        for (var i = hidden; i < visible; i++) {
            new_highest = max(new_highest, weight[softmax_row * KEYS + i]);
        }
        workgroupBarrier();
        for (var i = softmax_key; i < softmax_key + 4u; i++) {
            let at = softmax_row * KEYS + i;
            weight[at] = select(0.0, exp(weight[at] - new_highest), hidden <= i && i < visible);
        }
        workgroupBarrier();
        if softmax_key == 0u {
            let rescale = exp(highest - new_highest);
            var total = row_total[softmax_row] * rescale;
            for (var i = hidden; i < visible; i++) {
                total += weight[softmax_row * KEYS + i];
            }
            row_highest[softmax_row] = new_highest;
            row_rescale[softmax_row] = rescale;
            row_total[softmax_row] = total;
        }
        workgroupBarrier();

        sum0a *= row_rescale[value_row]; sum0b *= row_rescale[value_row];
        sum1a *= row_rescale[value_row + 1u]; sum1b *= row_rescale[value_row + 1u];
        let tile_keys = min(KEYS, keys - start);
        for (var i = 0u; i < tile_keys; i++) {
            let v_from = 2u * value_at(sequence, start + i, kv_head) + column;
            let w0 = weight[value_row * KEYS + i];
            let w1 = weight[(value_row + 1u) * KEYS + i];
            if column < params.value_quads {
                let v = cached_quad(v_from);
                sum0a += w0 * v;
                sum1a += w1 * v;
            }
            if column + 16u < params.value_quads {
                let v = cached_quad(v_from + 16u);
                sum0b += w0 * v;
                sum1b += w1 * v;
            }
        }
        workgroupBarrier();
    }

    finish(range, kv_head, first, value_row, count, column, sum0a, sum0b);
    finish(range, kv_head, first, value_row + 1u, count, column, sum1a, sum1b);
}

fn finish(
    range: vec2<u32>, kv_head: u32, first: u32, row: u32, count: u32, column: u32, a: vec4<f32>, b: vec4<f32>,
) {
    if row >= count {
        return;
    }
    let at = row_at(range, kv_head, first + row);
    let to = out_to(at.token, at.head) + column;
    // A row without keys is 0.
    let total = row_total[row];
    if column < params.value_quads {
        out[to] = select(vec4<f32>(0.0), a / total, total > 0.0);
    }
    if column + 16u < params.value_quads {
        out[to + 16u] = select(vec4<f32>(0.0), b / total, total > 0.0);
    }
}
