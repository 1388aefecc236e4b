// top_logits: the n largest logits of each row, descending, ties to the lower id, as log-probabilities
//
//     value[r][i] = (logit − m) − ln Σ_v exp(logit_v − m),  m the largest logit
//
// If a logit of a row is not finite, its ids are NOT_FINITE.
//
// logits [rows, stride] f32, the first `vocab` of a row count
// ids    [rows, n] u32              values [rows, n] f32
// grid   y: rows, one workgroup a row; n passes over the row, so that nothing has to be sorted

struct Params {
    vocab: u32,
    stride: u32,
    n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<f32>;

//!include "shared/reduce.wgsl"
//!include "shared/order.wgsl"
//!include "shared/finite.wgsl"

// A token and the order of its logit; id = vocab is none.
struct Candidate {
    order: u32,
    id: u32,
}

var<workgroup> lane_best: array<Candidate, LANES>;

fn before(a: Candidate, b: Candidate) -> bool {
    return a.order > b.order || (a.order == b.order && a.id < b.id);
}

// The better of `best` and a token; only those behind `last`, where there is one, are left to choose from.
fn better(best: Candidate, last: Candidate, logit: f32, id: u32) -> Candidate {
    let own = Candidate(order_of(logit), id);
    let left = id < params.vocab && (last.id == params.vocab || before(last, own));
    if left && (best.id == params.vocab || before(own, best)) {
        return own;
    }
    return best;
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let start = group.y * params.stride / 4u;
    let quads = (params.vocab + 3u) / 4u;
    let none = Candidate(0u, params.vocab);
    var last = none;
    var highest = 0.0;
    var log_sum = 0.0;
    var finite = true;
    for (var i = 0u; i < params.n; i++) {
        // Four at a time: llvmpipe's 65,535 turns (see row_attention_prefill) are 900,000 tokens.
        var best = none;
        for (var at = lane; at < quads; at += LANES) {
            let four = logits[start + at];
            best = better(best, last, four.x, 4u * at);
            best = better(best, last, four.y, 4u * at + 1u);
            best = better(best, last, four.z, 4u * at + 2u);
            best = better(best, last, four.w, 4u * at + 3u);
        }
        lane_best[lane] = best;
        workgroupBarrier();
        for (var other = 0u; other < LANES; other++) {
            let theirs = lane_best[other];
            if theirs.id != params.vocab && (best.id == params.vocab || before(theirs, best)) {
                best = theirs;
            }
        }
        workgroupBarrier();
        last = best;
        let id = min(best.id, params.vocab - 1u);
        let logit = logits[start + id / 4u][id % 4u];
        if i == 0u {
            highest = logit;
            var sum = 0.0;
            var broken = 0.0;
            for (var at = lane; at < quads; at += LANES) {
                let columns = 4u * at + vec4<u32>(0u, 1u, 2u, 3u);
                let four = logits[start + at];
                let weights = exp(four - highest);
                sum += dot(select(vec4<f32>(0.0), weights, columns < vec4<u32>(params.vocab)), vec4<f32>(1.0));
                // Padding is zero.
                let all = is_finite(four.x) && is_finite(four.y) && is_finite(four.z) && is_finite(four.w);
                broken += select(1.0, 0.0, all);
            }
            log_sum = log(workgroup_sum(lane, sum));
            finite = workgroup_sum(lane, broken) == 0.0;
        }
        if lane == 0u {
            ids[group.y * params.n + i] = select(NOT_FINITE, id, finite);
            // In this order large logits keep their precision.
            values[group.y * params.n + i] = (logit - highest) - log_sum;
        }
    }
}
