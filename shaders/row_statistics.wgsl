// row_statistics: what rows of attention weights w come to
//
//     entropy −Σ w ln w,   Σ w²,   the slot of the largest weight, the first of equals,   that weight,   then masses Σ_{j in a list} w_j
//
// rows         [asked_tokens, asked_heads, row] f32 by slot, as attention_rows writes those of the asked tokens from `first` on
// asked        as in gather_heads      spans [tokens] Span
// masses       [masses] (kind, a, b) u32, then what they point to:
//                  BEHIND  the key a slots before the row's own      LISTED  the slots at words a to before b, the same for all
//                  OF_TOKEN  the slots between the words that stand at word a + 2i and behind it, for the i-th asked token
// statistics   [asked_tokens, asked_heads, columns] f32: columns 2 to 5 and, from 6 on, one for each mass
// grid         x: asked heads, y: asked tokens; one workgroup each

struct Params {
    tokens: u32,
    asked_heads: u32,
    first: u32,
    row: u32,
    columns: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<f32>;
@group(0) @binding(2) var<storage, read> asked: array<u32>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(4) var<storage, read> masses: array<u32>;
@group(0) @binding(5) var<storage, read_write> statistics: array<f32>;

// Of a workgroup: a software adapter runs as many at a time and pays for each barrier, GPUs want more.
override LANES: u32 = 64u;

const BEHIND: u32 = 0u;
const LISTED: u32 = 1u;
const OF_TOKEN: u32 = 2u;

// Columns before the masses.
const FIRST_MASS: u32 = 6u;

// Entropy, sum of squares, largest weight, its slot.
var<workgroup> of_lanes: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let asked_token = params.first + group.y;
    let row = (group.y * params.asked_heads + group.x) * params.row;
    let columns = (asked_token * params.asked_heads + group.x) * params.columns;

    var own = vec4<f32>(0.0, 0.0, -1.0, 0.0);
    for (var slot = lane; slot < params.row; slot += LANES) {
        let w = rows[row + slot];
        if w > 0.0 {
            own.x -= w * log(w);
        }
        own.y += w * w;
        if w > own.z {
            own.z = w;
            own.w = f32(slot);
        }
    }
    of_lanes[lane] = own;
    workgroupBarrier();
    if lane == 0u {
        for (var i = 1u; i < LANES; i++) {
            let other = of_lanes[i];
            own.x += other.x;
            own.y += other.y;
            if other.z > own.z || (other.z == own.z && other.w < own.w) {
                own.z = other.z;
                own.w = other.w;
            }
        }
        statistics[columns + 2u] = own.x;
        statistics[columns + 3u] = own.y;
        statistics[columns + 4u] = own.w;
        statistics[columns + 5u] = own.z;
    }
    // One mass a lane.
    let token = min(asked[params.asked_heads + asked_token], params.tokens - 1u);
    for (var mass = lane; mass < params.columns - FIRST_MASS; mass += LANES) {
        statistics[columns + FIRST_MASS + mass] = mass_of(mass, row, asked_token, spans[token].slot);
    }
}

fn mass_of(mass: u32, row: u32, asked_token: u32, slot: u32) -> f32 {
    var first = masses[3u * mass + 1u];
    var end = masses[3u * mass + 2u];
    switch masses[3u * mass] {
        case BEHIND: {
            return weight_at(row, slot - first);
        }
        case OF_TOKEN: {
            let table = first + 2u * asked_token;
            first = masses[table];
            end = masses[table + 1u];
        }
        default: {}
    }
    var sum = 0.0;
    for (var i = first; i < min(end, arrayLength(&masses)); i++) {
        sum += weight_at(row, masses[i]);
    }
    return sum;
}

// None of a slot that the row has not.
fn weight_at(row: u32, slot: u32) -> f32 {
    if slot >= params.row {
        return 0.0;
    }
    return rows[row + slot];
}
