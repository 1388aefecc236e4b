// Selection and weighting: which experts a token uses, from its scores.
//
// Needs in scope: `scores` and `ranks` (workgroup arrays of MAX_EXPERTS), `chosen`, `gates`, workgroup_sum,
// order_of, and params.experts, params.top_k.
//
// The first SHARED experts are always chosen, with gate 1. Of the others the top_k best follow in descending
// order, ties to the lower index. With z the scores and p = softmax over all routed experts:

// gate = softmax over the kept z
const SOFTMAX_TOP_K: u32 = 0u;
// gate = p
const SOFTMAX_ALL: u32 = 1u;
// gate = p / (Σ kept p + RENORM_EPS)
const SOFTMAX_ALL_RENORM: u32 = 2u;
// gate = sigmoid(z)
const SIGMOID: u32 = 3u;
// gate = 1
const BINARY: u32 = 4u;
override WEIGHTING: u32 = SOFTMAX_TOP_K;
override RENORM_EPS: f32 = 0.0;
override SHARED: u32 = 0u;

// Writes the choice of one token at `to`.
fn choose(lane: u32, to: u32) {
    for (var expert = lane; expert < SHARED; expert += LANES) {
        chosen[to + expert] = expert;
        gates[to + expert] = 1.0;
    }
    var highest = scores[min(SHARED, MAX_EXPERTS - 1u)];
    for (var expert = SHARED + 1u; expert < params.experts; expert++) {
        highest = max(highest, scores[expert]);
    }
    var kept = 0.0;
    var every = 0.0;
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        let weight = exp(scores[expert] - highest);
        every += weight;
        ranks[expert] = rank_of(expert);
        if ranks[expert] < params.top_k {
            kept += weight;
        }
    }
    let kept_sum = workgroup_sum(lane, kept);
    let every_sum = workgroup_sum(lane, every);
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        let rank = ranks[expert];
        if rank < params.top_k {
            chosen[to + SHARED + rank] = expert;
            gates[to + SHARED + rank] = gate_of(scores[expert], highest, kept_sum, every_sum);
        }
    }
}

fn gate_of(score: f32, highest: f32, kept_sum: f32, every_sum: f32) -> f32 {
    let weight = exp(score - highest);
    switch WEIGHTING {
        case SOFTMAX_ALL: { return weight / every_sum; }
        case SOFTMAX_ALL_RENORM: { return weight / every_sum / (kept_sum / every_sum + RENORM_EPS); }
        case SIGMOID: { return 1.0 / (1.0 + exp(-score)); }
        case BINARY: { return 1.0; }
        default: { return weight / kept_sum; }
    }
}

// How many routed experts come before this one: those with a higher score, and the lower ones with the same.
// Ranks differ even where scores are equal or no numbers.
fn rank_of(expert: u32) -> u32 {
    let own = order_of(scores[expert]);
    var rank = 0u;
    for (var other = SHARED; other < params.experts; other++) {
        let order = order_of(scores[other]);
        rank += u32(order > own || (order == own && other < expert));
    }
    return rank;
}
