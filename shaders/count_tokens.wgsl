// count_tokens: counts[s][tokens[r]] += 1 for each row r, s its sequence
//
// Each row is of another sequence, so no two write the same count. A token that is none (NOT_FINITE) is not counted.
//
// tokens [rows] u32     spans [..] Span     rows [rows] u32: the span of each row
// counts [sequences, stride] u32
// grid   x: 64 rows

struct Params {
    rows: u32,
    vocab: u32,
    stride: u32,
    sequences: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read_write> counts: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * 64u + lane;
    if row >= params.rows || tokens[row] >= params.vocab {
        return;
    }
    let sequence = min(spans[rows[row]].sequence, params.sequences - 1u);
    counts[sequence * params.stride + tokens[row]] += 1u;
}
