// sample: draws tokens[r] from softmax(logits[r] / temperature), cut to the top k and then to mass top_p
//
// top k: logits at least as large as the k-th largest stay (ties at the cut stay).
// top p: of those, logits ≥ t stay, t the largest logit such that the softmax mass of logits ≥ t is ≥ top_p.
// draw:  the token whose cumulative mass, in index order, first exceeds u · total, where
//        u = (philox(counter (position + 1, sequence, 0, 0), key seed).x >> 8) · 2⁻²⁴
// The lowest number there is, as a logit, bans a token: it has no mass at any temperature.
// If a logit of a row is not finite, its token is NOT_FINITE.
//
// logits [rows, stride] f32     spans [..] Span     rows [rows] u32: the span of each row
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

//!include "shared/span.wgsl"

const LANES: u32 = 64u;
const LOWEST: f32 = -3.4028234e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;

//!include "shared/order.wgsl"
//!include "shared/philox.wgsl"
//!include "shared/finite.wgsl"

var<workgroup> partial_sums: array<vec3<f32>, LANES>;

// The quads of logits that a lane owns, `first` … `end` of the row that starts at `row`; lane order is token order.
struct Run {
    row: u32,
    first: u32,
    end: u32,
    // Of the whole row.
    highest: f32,
    finite: bool,
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let quads = (params.vocab + 3u) / 4u;
    let share = (quads + LANES - 1u) / LANES;
    var run: Run;
    run.row = group.y * params.stride / 4u;
    run.first = min(lane * share, quads);
    run.end = min(run.first + share, quads);
    find_highest(lane, &run);

    var cut = 0u;
    if params.top_k < params.vocab {
        cut = find_cut(lane, run, f32(params.top_k), false);
    }
    if params.top_p < 1.0 {
        let whole = workgroup_sum(lane, measure(run, vec3<u32>(cut), true)).x;
        // The highest logit alone has a mass of 1: so a share that is next to nothing keeps it, too.
        cut = find_cut(lane, run, max(params.top_p * whole, 0.5), true);
    }

    let total = workgroup_sum(lane, measure(run, vec3<u32>(cut), true)).x;
    let span = spans[rows[group.y]];
    let random = philox(
        vec4<u32>(span.position + 1u, span.sequence, 0u, 0u), vec2<u32>(params.seed_low, params.seed_high));
    let wanted = f32(random.x >> 8u) / 16777216.0 * total;

    // The lane whose run holds the wanted mass; the last one with any mass if rounding left it past the end.
    var owner = 0u;
    var before = 0.0;
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        if partial_sums[i].x > 0.0 && sum <= wanted {
            owner = i;
            before = sum;
        }
        sum += partial_sums[i].x;
    }
    if lane != owner {
        return;
    }
    // Likewise the token in the run. One without mass is never it.
    var token = 0u;
    for (var quad = run.first; quad < run.end && before <= wanted; quad++) {
        let four = logits_at(run, quad);
        let mass = select(vec4<f32>(0.0), mass_of(run, quad, four), orders_of(four) >= vec4<u32>(cut));
        for (var i = 0u; i < 4u && before <= wanted; i++) {
            if mass[i] > 0.0 {
                token = 4u * quad + i;
                before += mass[i];
            }
        }
    }
    tokens[group.y] = select(NOT_FINITE, min(token, params.vocab - 1u), run.finite);
}

// Every lane gets the same sum.
fn workgroup_sum(lane: u32, value: vec3<f32>) -> vec3<f32> {
    workgroupBarrier();
    partial_sums[lane] = value;
    workgroupBarrier();
    var sum = vec3<f32>(0.0);
    for (var i = 0u; i < LANES; i++) {
        sum += partial_sums[i];
    }
    return sum;
}

// The highest logit of the row, and whether all are finite: the same for every lane.
fn find_highest(lane: u32, run: ptr<function, Run>) {
    var four = vec4<f32>(LOWEST);
    var broken = 0.0;
    for (var quad = (*run).first; quad < (*run).end; quad++) {
        let own = logits_at(*run, quad);
        four = max(four, own);
        let all = is_finite(own.x) && is_finite(own.y) && is_finite(own.z) && is_finite(own.w);
        broken += select(1.0, 0.0, all);
    }
    partial_sums[lane] = vec3<f32>(max(max(four.x, four.y), max(four.z, four.w)), broken, 0.0);
    workgroupBarrier();
    var highest = LOWEST;
    broken = 0.0;
    for (var i = 0u; i < LANES; i++) {
        highest = max(highest, partial_sums[i].x);
        broken += partial_sums[i].y;
    }
    (*run).highest = highest;
    (*run).finite = broken == 0.0;
}

// The largest cut, two bits at a time, that leaves `wanted` logits, or with `by_mass` so much mass. A count is
// exact in f32 up to 2²⁴.
fn find_cut(lane: u32, run: Run, wanted: f32, by_mass: bool) -> u32 {
    var cut = 0u;
    for (var shift = 32u; shift > 0u; shift -= 2u) {
        let tried = vec3<u32>(cut) | (vec3<u32>(1u, 2u, 3u) << vec3<u32>(shift - 2u));
        let left = workgroup_sum(lane, measure(run, tried, by_mass));
        let enough = vec3<u32>(left >= vec3<f32>(wanted));
        cut |= (enough.x + enough.y + enough.z) << (shift - 2u);
    }
    return cut;
}

// What three cuts leave of this lane's logits: their number, or with `by_mass` their unnormalised mass.
fn measure(run: Run, cuts: vec3<u32>, by_mass: bool) -> vec3<f32> {
    var left = vec3<f32>(0.0);
    for (var quad = run.first; quad < run.end; quad++) {
        let four = logits_at(run, quad);
        let order = orders_of(four);
        var worth = select(vec4<f32>(0.0), vec4<f32>(1.0), is_token(quad));
        if by_mass {
            worth = mass_of(run, quad, four);
        }
        left += vec3<f32>(
            dot(worth, vec4<f32>(order >= vec4<u32>(cuts.x))),
            dot(worth, vec4<f32>(order >= vec4<u32>(cuts.y))),
            dot(worth, vec4<f32>(order >= vec4<u32>(cuts.z))));
    }
    return left;
}

// Which of four columns are tokens; those past the vocabulary are none.
fn is_token(quad: u32) -> vec4<bool> {
    return 4u * quad + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
}

fn logits_at(run: Run, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(LOWEST), logits[run.row + quad], is_token(quad));
}

fn orders_of(four: vec4<f32>) -> vec4<u32> {
    return vec4<u32>(order_of(four.x), order_of(four.y), order_of(four.z), order_of(four.w));
}

fn mass_of(run: Run, quad: u32, four: vec4<f32>) -> vec4<f32> {
    let mass = exp((four - run.highest) / params.temperature);
    return select(vec4<f32>(0.0), mass, is_token(quad) & (four > vec4<f32>(LOWEST)));
}
