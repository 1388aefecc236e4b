// row_attention_decode: softmax attention of one query row over one split of its keys.
//
//     o = Σ_j exp(z_j − m) v_j,   m = max_j z_j,   l = Σ_j exp(z_j − m),   z_j = q·(k_j + r_j)·scale
//
// r_j = relative[head in its expert][clamp(j − position, ±clip)] with RELATIVE, otherwise 0.
//
// With one split the result is o / l (0 for a row without keys) in rows of 4·out_quads for each slot. With more, o goes to `out` as
// [tokens, heads, splits, d] and (m, l) to `stats` as [tokens, heads, splits]; attention_merge puts them together.
// llvmpipe's 65,535 turns (see row_attention_prefill) are 21,000 keys of one split with heads of 128.
// grid   x: query heads (slots · heads), y: tokens, z: splits; one workgroup each

//!include "shared/row_attention.wgsl"
//!include "shared/expert_heads.wgsl"

@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> stats: array<vec2<f32>>;
// [heads, 2 · clip + 1, head], learned
@group(0) @binding(8) var<storage, read> relative: array<vec4<f32>>;

override RELATIVE: bool = false;

const LANES: u32 = 64u;
const MAX_HEAD_QUADS: u32 = 32u;

var<workgroup> query: array<vec4<f32>, MAX_HEAD_QUADS>;
var<workgroup> weight: array<f32, LANES>;
var<workgroup> sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let index = group.x;
    let token = group.y;
    let query_at = query_head(token, index);
    let kv_head = kv_head_of(query_at.head);
    let span = span_of(token, kv_head);
    let sequence = span.sequence;
    let first = group.z * params.split_keys;
    let end = min(first + params.split_keys, span.keys);

    if lane < params.head_quads {
        query[lane] = q[query_at.start + lane] * params.scale;
    }
    workgroupBarrier();

    // Values: the lanes split into teams of one lane for each vec4 of the head; each team takes every
    // teams-th key.
    let teams = LANES / params.head_quads;
    let team = lane / params.head_quads;
    let column = lane % params.head_quads;

    var highest = LOWEST;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var start = first; start < end; start += LANES) {
        let key = start + lane;
        var score = LOWEST;
        if key < end {
            let k_from = cache_start(sequence, key, kv_head);
            score = 0.0;
            let r_from = relative_start(index % params.heads, span.position, key);
            for (var i = 0u; i < params.head_quads; i++) {
                var k = k_cache[k_from + i];
                if RELATIVE {
                    k += relative[r_from + i];
                }
                score += dot(query[i], k);
            }
        }
        weight[lane] = score;
        workgroupBarrier();

        let count = min(LANES, end - start);
        var new_highest = highest;
        for (var i = 0u; i < count; i++) {
            new_highest = max(new_highest, weight[i]);
        }
        workgroupBarrier();
        weight[lane] = select(0.0, exp(score - new_highest), key < end);
        workgroupBarrier();

        let rescale = exp(highest - new_highest);
        highest = new_highest;
        total *= rescale;
        for (var i = 0u; i < count; i++) {
            total += weight[i];
        }
        sum *= rescale;
        if team < teams {
            for (var i = team; i < count; i += teams) {
                sum += weight[i] * v_cache[cache_start(sequence, start + i, kv_head) + column];
            }
        }
        workgroupBarrier();
    }

    sums[lane] = sum;
    workgroupBarrier();
    if lane >= params.head_quads {
        return;
    }
    var o = vec4<f32>(0.0);
    for (var i = 0u; i < teams; i++) {
        o += sums[i * params.head_quads + lane];
    }
    if params.splits == 1u {
        out[slot_start(token, index, params.out_quads) + lane] = select(vec4<f32>(0.0), o / total, total > 0.0);
        return;
    }
    let row = (token * params.slots * params.heads + index) * params.splits + group.z;
    out[row * params.head_quads + lane] = o;
    if lane == 0u {
        stats[row] = vec2<f32>(highest, total);
    }
}

// Where the learned vector for a key's distance from the query starts.
fn relative_start(head: u32, position: u32, key: u32) -> u32 {
    let clip = i32(params.clip);
    let entry = u32(clamp(i32(key) - i32(position), -clip, clip) + clip);
    return (head * (2u * params.clip + 1u) + entry) * params.head_quads;
}
