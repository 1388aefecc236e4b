// Grouping sorts assignments (token t, slot s → index t·k + s) by expert with a stable counting sort over
// chunks, and cuts each expert's run into tiles of at most `tile_rows` assignments.

const CHUNK: u32 = 64u;

struct Group {
    assignments: u32,
    experts: u32,
    chunks: u32,
    first: u32,
    tile_rows: u32,
    max_tiles: u32,
}

struct Tile {
    expert: u32,
    first: u32,
    rows: u32,
}
