// stick_breaking: attention in which each key breaks its share off what the newer keys left of a stick.
//
//     β_j = sigmoid(q·k_j·scale),   o = Σ_j β_j · Π_{j < l < end} (1 − β_l) · v_j
//
// Keys go from the newest to the oldest, 64 at a time; `rest` is the logarithm of what is left of the stick. With a split for each
// section of the cache, `out` is scratch: each breaks a whole stick and leaves its rest for attention_merge (splits.wgsl).
//
// llvmpipe's 65,535 turns (see row_attention_prefill) are 18,000 keys with heads of 128, 6,500 with heads of 1024.
//
// out    [tokens · slots, 4·out_quads]
// grid   x: query heads (slots · heads), y: tokens; one workgroup each

//!include "shared/row_attention.wgsl"
//!include "shared/expert_heads.wgsl"
//!include "shared/splits.wgsl"
//!include "shared/softplus.wgsl"

@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const LANES: u32 = 64u;
const MAX_HEAD_QUADS: u32 = 256u;
// Columns of a lane, every 64th.
const COLUMNS: u32 = 4u;

var<workgroup> query: array<vec4<f32>, MAX_HEAD_QUADS>;
var<workgroup> log_rest: array<f32, LANES>;
var<workgroup> weight: array<f32, LANES>;

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
    let sequence = span.sequence;
    let seen = seen_in_split(span, 0u);
    let newest = seen.end - 1u;
    // None where what the row sees ends before the window.
    let keys = max(seen.end, seen.first) - seen.first;
    for (var i = lane; i < params.key_quads; i += LANES) {
        query[i] = q[own.start + i] * params.scale;
    }
    workgroupBarrier();

    var rest = 0.0;
    var sums = array<vec4<f32>, COLUMNS>();
    for (var start = 0u; start < keys; start += LANES) {
        let count = min(LANES, keys - start);
        var score = 0.0;
        if lane < count {
            let k_from = 2u * key_at(sequence, newest - start - lane, kv_head);
            for (var i = 0u; i < params.key_quads; i++) {
                score += dot(query[i], cached_quad(k_from + i));
            }
            log_rest[lane] = -softplus(score);
        }
        workgroupBarrier();
        if lane < count {
            var newer = 0.0;
            for (var i = 0u; i < lane; i++) {
                newer += log_rest[i];
            }
            weight[lane] = exp(rest + newer - softplus(-score));
        }
        workgroupBarrier();
        // A block by itself first, so that its small terms do not vanish in a large rest.
        var taken = 0.0;
        for (var i = 0u; i < count; i++) {
            taken += log_rest[i];
        }
        rest += taken;
        for (var column = 0u; column < COLUMNS; column++) {
            let quad = lane + column * LANES;
            if quad < params.value_quads {
                for (var i = 0u; i < count; i++) {
                    let v_from = 2u * value_at(sequence, newest - start - i, kv_head);
                    sums[column] += weight[i] * cached_quad(v_from + quad);
                }
            }
        }
        workgroupBarrier();
    }

    var to = out_to(token, index);
    if params.splits > 1u {
        let row = split_row(token, index, split_of_window(0u));
        to = row * params.value_quads;
        if lane == 0u {
            out[split_stats(row)] = vec4<f32>(rest, 0.0, 0.0, 0.0);
        }
    }
    for (var column = 0u; column < COLUMNS; column++) {
        let quad = lane + column * LANES;
        if quad < params.value_quads {
            out[to + quad] = sums[column];
        }
    }
}
