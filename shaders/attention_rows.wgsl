// attention_rows: how asked heads of asked tokens weigh the keys that they see, and two numbers of the scores z
//
//     w_j = exp(z_j − log_sum)                        log_sum = ln Σ_j exp(z_j)       z_j = q·(k_j + r_j)·scale
//     w_j = σ(z_j) · Π_{j < l < end} (1 − σ(z_l))     log_sum = ln Π_l (1 − σ(z_l)), what is left of the stick, with STICKS
//
// Queries are those that were projected; here they turn. r_j as in row_attention_decode.
//
// q            [tokens · slots, 4·q_quads] f32, not turned
// angles       [.., r/2] (cos φ, sin φ) by position, r = 2·half_rotated channels; with RELATIVE the vectors r_j instead
// asked        as in gather_heads
// rows         [asked_tokens, asked_heads, row] f32 by slot: 0 for slots that a row does not see, and for heads that a token did not
//              choose; those of the asked tokens from `first` on
// statistics   [asked_tokens, asked_heads, columns] f32, columns 0 and 1: the highest score, log_sum; 0 where not chosen, and
//              of rows without keys
// grid         x: asked heads, y: asked tokens; one workgroup each. A dispatch takes the rows of its window
// llvmpipe's 65,535 turns (see row_attention_prefill) are 100,000 keys with heads of 128.

struct Params {
    cache: CacheWindow,
    tokens: u32,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    group: u32,
    key_quads: u32,
    q_quads: u32,
    sequences: u32,
    first_route: u32,
    scale: f32,
    clip: u32,
    half_rotated: u32,
    asked_heads: u32,
    first: u32,
    row: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

//!include "shared/spans.wgsl"
//!include "shared/query_heads.wgsl"
//!include "shared/expert_heads.wgsl"

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> asked: array<u32>;
@group(0) @binding(7) var<storage, read_write> rows: array<f32>;
@group(0) @binding(8) var<storage, read_write> statistics: array<f32>;

override STICKS: bool = false;
// Learned vectors are added to the keys, and `angles` are these.
override RELATIVE: bool = false;

//!include "shared/cache_read.wgsl"
//!include "shared/turn.wgsl"
//!include "shared/asked.wgsl"
//!include "shared/softplus.wgsl"

// Of a workgroup: a software adapter runs as many at a time and pays for each barrier, GPUs want more.
override LANES: u32 = 64u;
const MAX_HEAD_QUADS: u32 = 256u;

// Lower than any score; not infinite, so that differences stay numbers.
const LOWEST: f32 = -3.0e38;

var<workgroup> query: array<vec4<f32>, MAX_HEAD_QUADS>;
var<workgroup> of_lanes: array<vec2<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = asked_token(params.first + group.y);
    let row = (group.y * params.asked_heads + group.x) * params.row;
    let columns = ((params.first + group.y) * params.asked_heads + group.x) * params.columns;
    let index = index_of(token, asked[group.x]);
    if index >= params.slots * params.heads {
        // Of no window, so the first one's.
        if params.cache.first_sequence == 0u && params.cache.first_head == 0u {
            for (var i = lane; i < params.row; i += LANES) {
                rows[row + i] = 0.0;
            }
            if lane < 2u {
                statistics[columns + lane] = 0.0;
            }
        }
        return;
    }
    let own = query_head(token, index);
    let kv_head = kv_head_of(own.head);
    let span = span_of(token, kv_head);
    if !in_window(span.sequence, kv_head) {
        return;
    }
    let position = min(span.position, arrayLength(&angles) / max(params.half_rotated, 1u) - 1u);
    for (var i = lane; i < params.key_quads; i += LANES) {
        let from_channel = 4u * own.start;
        query[i] = params.scale * vec4<f32>(
            turned(from_channel, 4u * i, position),
            turned(from_channel, 4u * i + 1u, position),
            turned(from_channel, 4u * i + 2u, position),
            turned(from_channel, 4u * i + 3u, position),
        );
    }
    workgroupBarrier();

    let place = Place(span, kv_head, index % params.heads, min(span.end, params.row));
    for (var i = lane; i < params.row; i += LANES) {
        if i < span.first || i >= place.end {
            rows[row + i] = 0.0;
        }
    }
    var numbers: vec2<f32>;
    if STICKS {
        numbers = break_sticks(lane, row, place);
    } else {
        numbers = soften(lane, row, place);
    }
    if lane < 2u {
        statistics[columns + lane] = numbers[lane];
    }
}

struct Place {
    span: Span,
    kv_head: u32,
    // The head in its expert.
    head: u32,
    // The slot after the last that it sees.
    end: u32,
}

fn channel_at(i: u32) -> f32 {
    return q[i / 4u][i % 4u];
}

fn score(place: Place, key: u32) -> f32 {
    let k_from = 2u * key_at(place.span.sequence, key, place.kv_head);
    var score = 0.0;
    for (var i = 0u; i < params.key_quads; i++) {
        score += dot(query[i], key_quad(place, key, k_from, i));
    }
    return score;
}

// Of the keys from `key` on, LANES apart, those behind the last as that one: a lane loads the query once for all.
fn four_scores(place: Place, key: u32) -> vec4<f32> {
    let last = place.end - 1u;
    let keys = min(vec4<u32>(key, key + LANES, key + 2u * LANES, key + 3u * LANES), vec4<u32>(last));
    let sequence = place.span.sequence;
    let k_from = 2u * vec4<u32>(
        key_at(sequence, keys.x, place.kv_head),
        key_at(sequence, keys.y, place.kv_head),
        key_at(sequence, keys.z, place.kv_head),
        key_at(sequence, keys.w, place.kv_head),
    );
    var scores = vec4<f32>(0.0);
    for (var i = 0u; i < params.key_quads; i++) {
        let own = query[i];
        scores += vec4<f32>(
            dot(own, key_quad(place, keys.x, k_from.x, i)),
            dot(own, key_quad(place, keys.y, k_from.y, i)),
            dot(own, key_quad(place, keys.z, k_from.z, i)),
            dot(own, key_quad(place, keys.w, k_from.w, i)),
        );
    }
    return scores;
}

fn key_quad(place: Place, key: u32, k_from: u32, i: u32) -> vec4<f32> {
    if RELATIVE {
        return cached_quad(k_from + i) + learned(place, key, i);
    }
    return cached_quad(k_from + i);
}

// Of the learned vector for a key's distance.
fn learned(place: Place, key: u32, i: u32) -> vec4<f32> {
    let clip = i32(params.clip);
    let entry = u32(clamp(i32(key) - i32(place.span.slot), -clip, clip) + clip);
    let at = 2u * ((place.head * (2u * params.clip + 1u) + entry) * params.key_quads + i);
    return vec4<f32>(angles[at], angles[at + 1u]);
}

// A lane comes back to the keys that it scored, so nothing of `rows` goes from one to another.
fn soften(lane: u32, row: u32, place: Place) -> vec2<f32> {
    var highest = LOWEST;
    var total = 0.0;
    for (var start = place.span.first + lane; start < place.end; start += 4u * LANES) {
        let z = four_scores(place, start);
        for (var i = 0u; i < 4u; i++) {
            let key = start + i * LANES;
            if key < place.end {
                rows[row + key] = z[i];
                let higher = max(highest, z[i]);
                total = total * exp(highest - higher) + exp(z[i] - higher);
                highest = higher;
            }
        }
    }
    of_lanes[lane].x = highest;
    workgroupBarrier();
    let own = highest;
    for (var i = 0u; i < LANES; i++) {
        highest = max(highest, of_lanes[i].x);
    }
    of_lanes[lane].y = total * exp(own - highest);
    workgroupBarrier();
    total = 0.0;
    for (var i = 0u; i < LANES; i++) {
        total += of_lanes[i].y;
    }
    for (var key = place.span.first + lane; key < place.end; key += LANES) {
        rows[row + key] = exp(rows[row + key] - highest) / total;
    }
    if total == 0.0 {
        return vec2<f32>(0.0);
    }
    return vec2<f32>(highest, highest + log(total));
}

// From the newest key to the oldest, 64 at a time, as stick_breaking does.
fn break_sticks(lane: u32, row: u32, place: Place) -> vec2<f32> {
    let keys = max(place.end, place.span.first) - place.span.first;
    var highest = LOWEST;
    var rest = 0.0;
    for (var start = 0u; start < keys; start += LANES) {
        let count = min(LANES, keys - start);
        let key = place.end - 1u - start - lane;
        var z = LOWEST;
        if lane < count {
            z = score(place, key);
        }
        of_lanes[lane] = vec2<f32>(select(0.0, -softplus(z), lane < count), z);
        workgroupBarrier();
        var newer = 0.0;
        var taken = 0.0;
        for (var i = 0u; i < count; i++) {
            if i == lane {
                newer = taken;
            }
            taken += of_lanes[i].x;
            highest = max(highest, of_lanes[i].y);
        }
        if lane < count {
            rows[row + key] = exp(rest + newer - softplus(-z));
        }
        rest += taken;
        workgroupBarrier();
    }
    return vec2<f32>(select(highest, 0.0, keys == 0u), rest);
}
