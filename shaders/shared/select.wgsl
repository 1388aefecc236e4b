// Selection and weighting: which experts a token uses, from its scores.
//
// Needs in scope: `chosen`, `gates`, `kept_scores`, LANES, and params.experts, .top_k, .first, .first_score.
//
// The first SHARED experts are always chosen. The others fall into GROUPS equal runs, each with a choice of its own:
// the top_k best in descending order, ties to the lower index. With z the scores and p = softmax over a run:

//!needs var params, var chosen, var gates, const LANES

// gate = softmax over the kept z
const SOFTMAX_TOP_K: u32 = 0u;
// gate = p
const SOFTMAX_ALL: u32 = 1u;
// gate = p / (Σ kept p + RENORM_EPS)
const SOFTMAX_ALL_RENORM: u32 = 2u;
// gate = sigmoid(z)
const SIGMOID: u32 = 3u;
// gate = 1
const CONSTANT: u32 = 4u;
override WEIGHTING: u32 = SOFTMAX_TOP_K;
override RENORM_EPS: f32 = 0.0;
// Multiplies the gates of the routed experts.
override SCALE: f32 = 1.0;
override SHARED: u32 = 0u;
override GROUPS: u32 = 1u;
// Shared experts have scores, too, and gate = SHARED · softmax(their z); otherwise 1.
override SHARED_SOFTMAX: bool = false;
// Two more scores after the experts': 2 · softmax of them multiplies the shared and the routed gates.
override TWO_STAGE: bool = false;
// The first experts without a score.
override UNSCORED: u32 = 0u;

const MAX_EXPERTS: u32 = 256u;
const MAX_SCORES: u32 = 258u;

var<workgroup> scores: array<f32, MAX_SCORES>;
var<workgroup> ranks: array<u32, MAX_EXPERTS>;

//!include "shared/order.wgsl"

// Writes the choice of one token.
fn choose(lane: u32, token: u32) {
    let slots = SHARED + GROUPS * params.top_k;
    let routed = params.experts - SHARED;
    let group_size = routed / GROUPS;
    let to = params.first + token * slots;
    let stages = stage_weights();
    for (var expert = lane; expert < SHARED; expert += LANES) {
        chosen[to + expert] = expert;
        gates[to + expert] = stages.x * shared_gate(expert);
    }
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        kept_scores[params.first_score + token * routed + expert - SHARED] = scores[expert];
        let start = expert - (expert - SHARED) % group_size;
        ranks[expert] = rank_of(expert, start, start + group_size);
    }
    workgroupBarrier();
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        if ranks[expert] < params.top_k {
            let group = (expert - SHARED) / group_size;
            let start = SHARED + group * group_size;
            let slot = to + SHARED + group * params.top_k + ranks[expert];
            chosen[slot] = expert;
            gates[slot] = stages.y * SCALE * gate_of(expert, start, start + group_size);
        }
    }
}

// The gate of a kept expert of the run start … end − 1.
fn gate_of(expert: u32, start: u32, end: u32) -> f32 {
    if WEIGHTING == CONSTANT {
        return 1.0;
    }
    if WEIGHTING == SIGMOID {
        return 1.0 / (1.0 + exp(-scores[expert]));
    }
    var highest = scores[start];
    for (var other = start + 1u; other < end; other++) {
        highest = max(highest, scores[other]);
    }
    var kept = 0.0;
    var every = 0.0;
    for (var other = start; other < end; other++) {
        let weight = exp(scores[other] - highest);
        every += weight;
        if ranks[other] < params.top_k {
            kept += weight;
        }
    }
    let weight = exp(scores[expert] - highest);
    switch WEIGHTING {
        case SOFTMAX_ALL: { return weight / every; }
        case SOFTMAX_ALL_RENORM: { return weight / every / (kept / every + RENORM_EPS); }
        default: { return weight / kept; }
    }
}

// SHARED · softmax over the scores of the shared experts, or 1.
fn shared_gate(expert: u32) -> f32 {
    if !SHARED_SOFTMAX {
        return 1.0;
    }
    var highest = scores[0];
    for (var other = 1u; other < SHARED; other++) {
        highest = max(highest, scores[other]);
    }
    var every = 0.0;
    for (var other = 0u; other < SHARED; other++) {
        every += exp(scores[other] - highest);
    }
    return f32(SHARED) * exp(scores[expert] - highest) / every;
}

// The weights of the shared and of the routed experts as a whole.
fn stage_weights() -> vec2<f32> {
    if !TWO_STAGE {
        return vec2<f32>(1.0);
    }
    let z = vec2<f32>(scores[params.experts], scores[params.experts + 1u]);
    let weights = exp(z - max(z.x, z.y));
    return 2.0 * weights / (weights.x + weights.y);
}

// How many experts of the run start … end − 1 come before this one: those with a higher score, and the lower ones
// with the same. Ranks differ even where scores are equal or no numbers.
fn rank_of(expert: u32, start: u32, end: u32) -> u32 {
    let own = order_of(scores[expert]);
    var rank = 0u;
    for (var other = start; other < end; other++) {
        let order = order_of(scores[other]);
        rank += u32(order > own || (order == own && other < expert));
    }
    return rank;
}
