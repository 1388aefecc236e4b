// One query row over a part of its keys, by a workgroup of 64 lanes. The including file has `key_of`, which may add to
// a key, and fills `query`; see row_attention_decode.

//!needs var params, var out, const LOWEST, fn key_at, fn value_at, fn out_to, fn cached_quad, fn key_of

//!include "shared/splits.wgsl"

const LANES: u32 = 64u;
const MAX_HEAD_QUADS: u32 = 32u;

var<workgroup> query: array<vec4<f32>, MAX_HEAD_QUADS>;
var<workgroup> weight: array<f32, LANES>;
var<workgroup> sums: array<vec4<f32>, LANES>;

// The running softmax: the highest score, the sum of the weights, and a lane's part of the weighted values.
struct Softmax {
    highest: f32,
    total: f32,
    sum: vec4<f32>,
}

// Where a row reads: its sequence's cache, its key/value head.
struct Place {
    sequence: u32,
    kv_head: u32,
    slot: u32,
    // The head in its expert.
    head: u32,
}

// For values the lanes split into teams of one lane for each vec4 of the head; each team takes every teams-th key.
fn attend(lane: u32, place: Place, first: u32, end: u32, before: Softmax) -> Softmax {
    let teams = LANES / params.value_quads;
    let team = lane / params.value_quads;
    let column = lane % params.value_quads;

    var highest = before.highest;
    var total = before.total;
    var sum = before.sum;
    for (var start = first; start < end; start += LANES) {
        let key = start + lane;
        var score = LOWEST;
        if key < end {
            let k_from = 2u * key_at(place.sequence, key, place.kv_head);
            score = 0.0;
            for (var i = 0u; i < params.key_quads; i++) {
                score += dot(query[i], key_of(place, key, k_from, i));
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
                sum += weight[i] * cached_quad(2u * value_at(place.sequence, start + i, place.kv_head) + column);
            }
        }
        workgroupBarrier();
    }
    return Softmax(highest, total, sum);
}

// Adds up the teams and writes the row, or its part if there are more.
fn finish(lane: u32, token: u32, index: u32, split: u32, softmax: Softmax) {
    sums[lane] = softmax.sum;
    workgroupBarrier();
    if lane >= params.value_quads {
        return;
    }
    let teams = LANES / params.value_quads;
    var o = vec4<f32>(0.0);
    for (var i = 0u; i < teams; i++) {
        o += sums[i * params.value_quads + lane];
    }
    if params.splits == 1u {
        let whole = select(vec4<f32>(0.0), o / softmax.total, softmax.total > 0.0);
        out[out_to(token, index) + lane] = whole;
        return;
    }
    let row = split_row(token, index, split);
    out[row * params.value_quads + lane] = o;
    if lane == 0u {
        out[split_stats(row)] = vec4<f32>(softmax.highest, softmax.total, 0.0, 0.0);
    }
}
