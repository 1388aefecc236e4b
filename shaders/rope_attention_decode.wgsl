// rope_attention_decode: row_attention_decode of tokens that are alone in their sequences' step, with the rotation of query and
// key and the append to the cache before it.
//
//     k_s = turn(k, p),   o = Σ_{j ≤ s} exp(z_j − m) v_j,   z_j = turn(q, p)·k_j·scale,   p = position, s = slot, seen last
//
// Every workgroup takes the own key and value from `kv`, and one of each key/value head writes them to the cache, where
// nobody reads them in this step.
//
// out, splits, grid   as in row_attention_decode

//!include "shared/rope_attention.wgsl"
//!include "shared/decode_row.wgsl"

var<workgroup> own: array<vec4<f32>, MAX_HEAD_QUADS>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let index = group.x;
    let token = group.y;
    let kv_head = kv_head_of(index);
    let span = span_of(token, kv_head);
    if !in_window(span.sequence, kv_head) {
        return;
    }
    let seen = seen_in_split(span, group.z);
    let owns = seen.first <= span.slot && span.slot < seen.end;

    if lane < params.key_quads {
        let start = query_from(token, index);
        let position = turning_position(span);
        query[lane] = turned(q[start + lane], q[start + partner(lane)], lane, position) * params.scale;
        own[lane] = own_key(token, kv_head, lane, position);
    }
    workgroupBarrier();

    var softmax = Softmax(LOWEST, 0.0, vec4<f32>(0.0));
    if owns {
        var score = 0.0;
        for (var i = 0u; i < params.key_quads; i++) {
            score += dot(query[i], own[i]);
        }
        // The first team adds the value.
        softmax = Softmax(score, 1.0, vec4<f32>(0.0));
        if lane < params.value_quads {
            softmax.sum = own_value(token, kv_head, lane);
        }
        // The first query head that reads a key/value head appends.
        if index == kv_head * params.group && lane < max(params.cache.key_eights, params.cache.value_eights) {
            append(token, kv_head, lane, span);
        }
    }
    let place = Place(span.sequence, kv_head, span.slot, 0u);
    let sum = attend(lane, place, seen.first, min(seen.end, span.slot), softmax);
    finish(lane, token, index, split_of_window(group.z), sum);
}

fn key_of(place: Place, key: u32, k_from: u32, i: u32) -> vec4<f32> {
    return cached_quad(k_from + i);
}
