// sample: draws tokens[r] from softmax(logits[r] / temperature), cut to the top k and then to mass top_p
//
// top k: logits at least as large as the k-th largest stay (ties at the cut stay).
// top p: of those, logits ≥ t stay, t the largest logit such that the softmax mass of logits ≥ t is ≥ top_p.
// draw:  the token whose cumulative mass, in index order, first exceeds u · total, where
//        u = (philox(counter (position + 1, sequence, 0, 0), key seed).x >> 8) · 2⁻²⁴
//
// logits [rows, stride] f32     spans [..] (position, sequence)     rows [rows] u32: the span of each row
// tokens [rows] u32             grid  y: rows, one workgroup a row

struct Params {
    vocab: u32,
    stride: u32,
    top_k: u32,
    seed_low: u32,
    seed_high: u32,
    top_p: f32,
    temperature: f32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;

//!include "shared/philox.wgsl"

var<workgroup> partial_sums: array<f32, LANES>;

// Every lane gets the same sum.
fn workgroup_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    partial_sums[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        sum += partial_sums[i];
    }
    return sum;
}

// An integer that orders as the float does.
fn order_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let start = group.y * params.stride;
    // Each lane owns a run of tokens, so that lane order is token order.
    let run = (params.vocab + LANES - 1u) / LANES;
    let first = start + min(lane * run, params.vocab);
    let end = start + min((lane + 1u) * run, params.vocab);

    var mine = -3.4e38;
    for (var i = first; i < end; i++) {
        mine = max(mine, logits[i]);
    }
    partial_sums[lane] = mine;
    workgroupBarrier();
    var highest = -3.4e38;
    for (var i = 0u; i < LANES; i++) {
        highest = max(highest, partial_sums[i]);
    }

    // The largest cut, bit by bit, that still leaves top_k logits; likewise for the mass. A count is exact in
    // f32 up to 2²⁴.
    var cut = 0u;
    if params.top_k < params.vocab {
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            var count = 0.0;
            for (var i = first; i < end; i++) {
                count += f32(order_of(logits[i]) >= (cut | bit));
            }
            if workgroup_sum(lane, count) >= f32(params.top_k) {
                cut |= bit;
            }
        }
    }
    if params.top_p < 1.0 {
        let wanted = params.top_p * workgroup_sum(lane, mass_of(first, end, cut, highest));
        var nucleus = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            let mass = mass_of(first, end, max(cut, nucleus | bit), highest);
            if workgroup_sum(lane, mass) >= wanted {
                nucleus |= bit;
            }
        }
        cut = max(cut, nucleus);
    }

    let total = workgroup_sum(lane, mass_of(first, end, cut, highest));
    let span = spans[rows[group.y]];
    let random = philox(
        vec4<u32>(span.x + 1u, span.y, 0u, 0u), vec2<u32>(params.seed_low, params.seed_high));
    let wanted = f32(random.x >> 8u) / 16777216.0 * total;

    // The lane whose run holds the wanted mass; the last one with any mass if rounding left it past the end.
    var owner = 0u;
    var before = 0.0;
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        if partial_sums[i] > 0.0 && sum <= wanted {
            owner = i;
            before = sum;
        }
        sum += partial_sums[i];
    }
    if lane != owner {
        return;
    }
    var token = 0u;
    for (var i = first; i < end; i++) {
        if order_of(logits[i]) >= cut {
            token = i - start;
            before += weight_of(logits[i], highest);
            if before > wanted {
                break;
            }
        }
    }
    tokens[group.y] = token;
}

fn weight_of(logit: f32, highest: f32) -> f32 {
    return exp((logit - highest) / params.temperature);
}

// The unnormalised mass of this lane's logits that are not cut.
fn mass_of(first: u32, end: u32, cut: u32, highest: f32) -> f32 {
    var mass = 0.0;
    for (var i = first; i < end; i++) {
        if order_of(logits[i]) >= cut {
            mass += weight_of(logits[i], highest);
        }
    }
    return mass;
}
