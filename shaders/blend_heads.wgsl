// blend_heads: z[r] = (1 − u) · z[r] + u · m, over the edits of the head that a row is, in their order; m is a row of attention without
// a query:
//     identity   v of the row's own key               uniform   (Σ v of the keys that the row sees) / (how many)
//     row        Σ w_j v_j of those that it sees among the positions that the edit names
//
// A dispatch takes the rows of its window, as attention does. Of a cache that is cut by slots each section adds its part.
//
// plan     [..] u32, as shared/edits.wgsl reads it, by head
// out      [tokens · slots, 4·out_quads] f32: the heads' outputs z
// applied  [edits] u32: how many heads of tokens each edit has changed, counted on
// grid     x: quads of a token's heads, y: tokens

//!include "shared/attention_params.wgsl"
//!include "shared/expert_heads.wgsl"

@group(0) @binding(2) var<storage, read> plan: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> applied: array<atomic<u32>>;

override ROUTED: bool = true;

// As `Change::MOST_OF_ROW`.
const MOST_OF_ROW: u32 = 16u;

//!include "shared/cache_read.wgsl"
//!include "shared/edits.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let index = at.x / params.value_quads;
    let quad = at.x % params.value_quads;
    let token = at.y;
    if index >= params.slots * params.heads || token >= params.tokens {
        return;
    }
    var unit = index;
    if ROUTED {
        let expert = chosen[params.first_route + token * params.slots + index / params.heads];
        // A slot that nobody took has no head.
        unit = min(expert, units()) * params.heads + index % params.heads;
    }
    if unit >= units() {
        return;
    }
    let kv_head = kv_head_of(query_head(token, index).head);
    let span = span_of(token, kv_head);
    if !in_window(span.sequence, kv_head) {
        return;
    }
    let seen = seen_in_split(span, 0u);
    let first_section = params.cache.section == 0u;

    // From the last edit back: what is left of all before it.
    var left = 1.0;
    var sum = vec4<f32>(0.0);
    var some = false;
    // Made when the first edit asks for it.
    var mean = vec4<f32>(0.0);
    var has_mean = false;
    let first = first_record(unit);
    for (var record = first_record(unit + 1u); record > first; record -= RECORD) {
        let edit = record - RECORD;
        if !is_at(edit, span.position) {
            continue;
        }
        some = true;
        var row = vec4<f32>(0.0);
        if what(edit) == UNIFORM {
            if !has_mean {
                for (var slot = seen.first; slot < seen.end; slot++) {
                    mean += cached_quad(2u * value_at(span.sequence, slot, kv_head) + quad);
                }
                mean /= f32(span.end - span.first);
                has_mean = true;
            }
            row = mean;
        } else if what(edit) == ROW {
            row = given_row(edit, span, seen, kv_head, quad);
        } else if slot_in_window(span.slot) {
            row = cached_quad(2u * value_at(span.sequence, span.slot, kv_head) + quad);
        }
        sum += left * value(edit) * row;
        left *= 1.0 - value(edit);
        if first_section && quad == 0u {
            atomicAdd(&applied[number(edit)], 1u);
        }
    }
    if some {
        let to = out_to(token, index) + quad;
        out[to] = out[to] * select(1.0, left, first_section) + sum;
    }
}

// Positions go on as slots do: a key's slot is as far from the row's own as its position is.
fn given_row(edit: u32, span: Span, seen: Slots, kv_head: u32, quad: u32) -> vec4<f32> {
    let start = brought(edit);
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < min(plan[start], MOST_OF_ROW); i++) {
        let slot = plan[start + 1u + 2u * i] + span.slot - span.position;
        if slot >= seen.first && slot < seen.end {
            let weight = bitcast<f32>(plan[start + 2u + 2u * i]);
            sum += weight * cached_quad(2u * value_at(span.sequence, slot, kv_head) + quad);
        }
    }
    return sum;
}
