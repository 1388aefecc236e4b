// What the variants of routed_matmul share: bindings, addressing and the epilogue.
//
// routed_matmul: dst[a] = activation(W[expert] · src[a / src_div] + bias) for the assignments a of each tile
//
// src     [.., 8·in_blocks] f32             weights [experts, halves, part_rows, 8·in_blocks]
// tiles   [max_tiles] Tile                  order   [assignments] u32
// bias    [8·⌈out/8⌉] f32, with EXPERT_BIAS [experts, 8·⌈out/8⌉]     dst     [assignments, 4·out_quads] f32
//
// A variant declares dst itself, at binding 6. Parts and SWIGLU as in routed_matvec. A dense matrix (not ROUTED)
// needs no tiles and no order: tile i is the rows i · tile_rows … of one expert.

struct Params {
    rows: u32,
    src_div: u32,
    in_blocks: u32,
    out_quads: u32,
    part_first: u32,
    part_rows: u32,
    part_quads: u32,
    experts: u32,
    tile_rows: u32,
}

struct Tile {
    expert: u32,
    first: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;
@group(0) @binding(4) var<storage, read> order: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<vec4<f32>>;

override ROUTED: bool = true;
override BIAS: bool = false;
override EXPERT_BIAS: bool = false;
override SWIGLU: bool = false;

//!include "shared/weights.wgsl"
//!include "shared/activation.wgsl"

// The tile with its expert and its rows clamped to what exists.
fn tile_at(index: u32) -> Tile {
    if ROUTED {
        let tile = tiles[index];
        let first = min(tile.first, params.rows);
        return Tile(min(tile.expert, params.experts - 1u), first, min(tile.rows, params.rows - first));
    }
    let first = min(index * params.tile_rows, params.rows);
    return Tile(0u, first, min(params.tile_rows, params.rows - first));
}

// The assignment at row `row` of a tile; rows past its end repeat the last one.
fn assignment_at(tile: Tile, row: u32) -> u32 {
    let position = tile.first + min(row, tile.rows - 1u);
    if ROUTED {
        return min(order[position], params.rows - 1u);
    }
    return position;
}

// Where an assignment's input row starts, in vec4s.
fn src_start(assignment: u32) -> u32 {
    return assignment / params.src_div * params.in_blocks * 2u;
}

// The vec4 where the weights of output quad `quad` of an expert's half start; quads past the part repeat its last one.
fn quad_start(expert: u32, half: u32, quad: u32) -> u32 {
    let halves = select(1u, 2u, SWIGLU);
    let last = (params.part_rows - 1u) / 4u;
    return quad_base((expert * halves + half) * (last + 1u) + min(quad, last));
}

// The bias of a quad of columns.
fn bias_at(expert: u32, column: u32) -> vec4<f32> {
    if EXPERT_BIAS {
        return bias[expert * params.out_quads + column];
    }
    return bias[column];
}

fn silu(x: vec4<f32>) -> vec4<f32> {
    return x / (1.0 + exp(-x));
}
