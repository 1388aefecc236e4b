// row_attention_decode: softmax attention of one query row over one split of its keys.
//
//     o = Σ_j exp(z_j − m) v_j,   m = max_j z_j,   l = Σ_j exp(z_j − m),   z_j = q·(k_j + r_j)·scale
//
// r_j = relative[head in its expert][clamp(j − own slot, ±clip)] with RELATIVE, otherwise 0.
//
// With one split the result is o / l (0 for a row without keys) in rows of 4·out_quads for each slot. With more, `out` is scratch
// (splits.wgsl), which attention_merge puts together.
// llvmpipe's 65,535 turns (see row_attention_prefill) are 21,000 keys of one split with heads of 128.
// grid   x: query heads (slots · heads), y: tokens, z: the window's splits; one workgroup each

//!include "shared/row_attention.wgsl"
//!include "shared/expert_heads.wgsl"
//!include "shared/decode_row.wgsl"

@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
// [heads, 2 · clip + 1, head], learned
@group(0) @binding(6) var<storage, read> relative: array<vec4<f32>>;

override RELATIVE: bool = false;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let index = group.x;
    let token = group.y;
    let own = query_head(token, index);
    let kv_head = kv_head_of(own.head);
    let span = span_of(token, kv_head);
    if !in_window(span.sequence, kv_head) {
        return;
    }
    let seen = seen_in_split(span, group.z);

    if lane < params.key_quads {
        query[lane] = q[own.start + lane] * params.scale;
    }
    workgroupBarrier();
    let place = Place(span.sequence, kv_head, span.slot, index % params.heads);
    let none = Softmax(LOWEST, 0.0, vec4<f32>(0.0));
    finish(lane, token, index, split_of_window(group.z), attend(lane, place, seen.first, seen.end, none));
}

fn key_of(place: Place, key: u32, k_from: u32, i: u32) -> vec4<f32> {
    if RELATIVE {
        // The learned vector for the key's distance from the query.
        let clip = i32(params.clip);
        let entry = u32(clamp(i32(key) - i32(place.slot), -clip, clip) + clip);
        let r_from = (place.head * (2u * params.clip + 1u) + entry) * params.key_quads;
        return cached_quad(k_from + i) + relative[r_from + i];
    }
    return cached_quad(k_from + i);
}
