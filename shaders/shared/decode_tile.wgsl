// A tile of the rows of one token and one split of their keys; `out` and `stats` as in row_attention_decode.

//!needs var params, var out, var stats, const ROWS, fn slot_start, fn head_of

struct Tile {
    token: u32,
    kv_head: u32,
    // The first of its rows among those that read the key/value head, and how many it has.
    first: u32,
    count: u32,
    split: u32,
}

var<private> tile: Tile;

// x: key/value heads, tile after tile
fn find_tile(group: vec3<u32>) {
    let rows = params.slots * params.heads / params.kv_heads;
    let first = group.x / params.kv_heads * ROWS;
    tile = Tile(group.y, group.x % params.kv_heads, first, min(ROWS, rows - first), group.z);
}

// The query head of a row of the tile.
fn tile_head(row: u32) -> u32 {
    return head_of(tile.kv_head, tile.first + row);
}

// The row of `partial` for a row of the tile.
fn split_row(row: u32) -> u32 {
    return (tile.token * params.slots * params.heads + tile_head(row)) * params.splits + tile.split;
}

// Where the output of a row of the tile starts.
fn out_start(row: u32) -> u32 {
    if params.splits == 1u {
        return slot_start(tile.token, tile_head(row), params.out_quads);
    }
    return split_row(row) * params.head_quads;
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
        stats[split_row(row)] = vec2<f32>(row_highest, row_total);
    }
}
