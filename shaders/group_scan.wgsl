// group_scan: counts[c][e] becomes the sorted position of chunk c's first assignment to expert e, and the
// tile table is written.
//
// counts [chunks, experts] u32, in place
// tiles  [max_tiles] Tile; unused tiles have no rows; max_tiles ≥ assignments / tile_rows + experts
// grid   one workgroup; lane e handles the experts e, e + 64, …

//!include "shared/group.wgsl"

const LANES: u32 = 64u;
const MAX_EXPERTS: u32 = 256u;

@group(0) @binding(0) var<uniform> params: Group;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> tiles: array<Tile>;

var<workgroup> totals: array<u32, MAX_EXPERTS>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var expert = lane; expert < params.experts; expert += LANES) {
        var total = 0u;
        for (var chunk = 0u; chunk < params.chunks; chunk++) {
            total += counts[chunk * params.experts + expert];
        }
        totals[expert] = total;
    }
    workgroupBarrier();

    var used = 0u;
    for (var expert = 0u; expert < params.experts; expert++) {
        used += (totals[expert] + params.tile_rows - 1u) / params.tile_rows;
    }
    for (var tile = used + lane; tile < params.max_tiles; tile += LANES) {
        tiles[tile] = Tile(0u, 0u, 0u);
    }

    for (var expert = lane; expert < params.experts; expert += LANES) {
        var position = 0u;
        var tile = 0u;
        for (var before = 0u; before < expert; before++) {
            position += totals[before];
            tile += (totals[before] + params.tile_rows - 1u) / params.tile_rows;
        }
        for (var row = 0u; row < totals[expert]; row += params.tile_rows) {
            tiles[tile] = Tile(expert, position + row, min(params.tile_rows, totals[expert] - row));
            tile++;
        }
        for (var chunk = 0u; chunk < params.chunks; chunk++) {
            let at = chunk * params.experts + expert;
            let count = counts[at];
            counts[at] = position;
            position += count;
        }
    }
}
