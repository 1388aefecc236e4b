// A tile of the rows of one token and one split of their keys; `out` as in row_attention_decode.

//!needs var params, var out, const ROWS, fn out_to, fn head_of, fn split_of_window

//!include "shared/splits.wgsl"

struct Tile {
    token: u32,
    kv_head: u32,
    // The first of its rows among those that read the key/value head, and how many it has.
    first: u32,
    count: u32,
    split: u32,
}

var<private> tile: Tile;

// x: key/value heads of the window, tile after tile
fn find_tile(group: vec3<u32>) {
    let rows = params.slots * params.heads / params.kv_heads;
    let first = group.x / params.cache.heads * ROWS;
    tile = Tile(group.y, kv_head_of_tile(group), first, min(ROWS, rows - first), split_of_window(group.z));
}

fn kv_head_of_tile(group: vec3<u32>) -> u32 {
    return params.cache.first_head + group.x % params.cache.heads;
}

// The query head of a row of the tile.
fn tile_head(row: u32) -> u32 {
    return head_of(tile.kv_head, tile.first + row);
}

// The place in scratch of a row of the tile.
fn tile_split(row: u32) -> u32 {
    return split_row(tile.token, tile_head(row), tile.split);
}

// Where the output of a row of the tile starts.
fn out_start(row: u32) -> u32 {
    if params.splits == 1u {
        return out_to(tile.token, tile_head(row));
    }
    return tile_split(row) * params.value_quads;
}

fn store(row: u32, i: u32, sum: vec4<f32>, row_highest: f32, row_total: f32) {
    if row >= tile.count {
        return;
    }
    if params.splits == 1u {
        // A row without keys is 0.
        out[out_start(row) + i] = select(vec4<f32>(0.0), sum / row_total, row_total > 0.0);
        return;
    }
    out[out_start(row) + i] = sum;
    if i == 0u {
        out[split_stats(tile_split(row))] = vec4<f32>(row_highest, row_total, 0.0, 0.0);
    }
}
