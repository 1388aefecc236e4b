// embedding: x[t] = scale · table[ids[t]]
//
// ids    [tokens] u32            table [part_rows, width] weights in quads, rows first_row … of the vocabulary
// x      [tokens, width] f32     written only for ids inside this part of the table
// grid   x: blocks of 8 columns, y: tokens

struct Params {
    tokens: u32,
    in_blocks: u32,
    first_row: u32,
    part_rows: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

//!include "shared/weights.wgsl"

@compute @workgroup_size(32)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let block = at.x;
    let token = at.y;
    if block >= params.in_blocks || token >= params.tokens {
        return;
    }
    let row = ids[token] - params.first_row;
    if row >= params.part_rows {
        return;
    }
    let eight = row_eight(quad_base(row / 4u), row % 4u, block);
    let to = 2u * (token * params.in_blocks + block);
    x[to] = params.scale * eight.lo;
    x[to + 1u] = params.scale * eight.hi;
}
