// edit_heads: over the edits of the head or expert that stands there, in their order
//
//     scale  z ← s · z        mix  z ← (1 − a) · z + a · v        add  z ← z + b · v
//
// infinite where that is beyond MOST, so that what comes of it is seen to be no number: a norm would make 0 of all that the
// residual stream has beside.
//
// plan     [..] u32, as shared/edits.wgsl reads it: by head, `heads` of each expert, or by slot where nothing is routed
// spans    [tokens] Span     chosen [.., tokens, slots] u32, from index `first`: the expert of each slot
// rows     [tokens, slots, 4·row_quads] f32, `heads` heads of `quads` quads each, behind the first `first_quad`
// vectors  [.., 4·quads] f32: the vectors v, one after the other
// applied  [edits] u32: how many heads of tokens each edit has changed, counted on
// grid     x: quads of a row's heads, y: tokens, z: slots

struct Params {
    tokens: u32,
    slots: u32,
    heads: u32,
    quads: u32,
    row_quads: u32,
    first_quad: u32,
    first: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> chosen: array<u32>;
@group(0) @binding(4) var<storage, read_write> rows: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> vectors: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> applied: array<atomic<u32>>;

override ROUTED: bool = true;

//!include "shared/edits.wgsl"

// A million such outputs, or a projection of them, have a square that is a number.
const MOST: f32 = 1e10;
const HIGHEST: f32 = 3.4e38;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let head = at.x / params.quads;
    let row = at.y * params.slots + at.z;
    if head >= params.heads || at.y >= params.tokens {
        return;
    }
    var expert = at.z;
    if ROUTED {
        expert = chosen[params.first + row];
    }
    // A slot that nobody took is not among them.
    if expert >= units() / params.heads {
        return;
    }
    let unit = expert * params.heads + head;
    let position = spans[at.y].position;
    let quad = at.x % params.quads;
    let place = row * params.row_quads + params.first_quad + at.x;
    var z = rows[place];
    for (var record = first_record(unit); record < first_record(unit + 1u); record += RECORD) {
        if !is_at(record, position) {
            continue;
        }
        switch what(record) {
            case MIX: { z = (1.0 - value(record)) * z + value(record) * vectors[vector(record, position, params.quads) + quad]; }
            case ADD: { z += value(record) * vectors[vector(record, position, params.quads) + quad]; }
            default: { z *= value(record); }
        }
        if quad == 0u {
            atomicAdd(&applied[number(record)], 1u);
        }
    }
    rows[place] = select(z, z * HIGHEST, abs(z) > vec4<f32>(MOST));
}
