// edit_routes: the choice of each token again, where edits change it. With z the scores it was made by and b the biases:
//     choice   by z + b, forced experts before all others, masked ones behind; gates by z + b, those of masked experts 0
//     off      gates of these experts 0, the token's others · (Σ of all / Σ of the others)
// A token that no edit is meant for keeps its bits.
//
// plan     [..] u32, as shared/edits.wgsl reads it, by expert     spans [tokens] Span
// chosen   [.., tokens, k] u32, from index `first`, k slots a token; gates likewise f32
// kept_scores [.., tokens, routed experts] f32, from index `first_score`
// applied  [edits] u32: for how many tokens each edit changed something, counted on
// grid     y: tokens, one workgroup a token

const LANES: u32 = 64u;

struct Params {
    experts: u32,
    top_k: u32,
    first: u32,
    first_score: u32,
}

//!include "shared/span.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(4) var<storage, read_write> gates: array<f32>;
@group(0) @binding(5) var<storage, read_write> kept_scores: array<f32>;
@group(0) @binding(6) var<storage, read_write> applied: array<atomic<u32>>;

//!include "shared/edits.wgsl"
//!include "shared/select.wgsl"

// Where the finite scores end.
const HIGHEST: f32 = 3.4e38;

// What is to happen to an expert: a bit for each kind of edit.
var<workgroup> kinds: array<u32, MAX_EXPERTS>;
var<workgroup> biases: array<f32, MAX_EXPERTS>;
// The token's slots as they will be.
var<workgroup> slot_experts: array<u32, MAX_EXPERTS>;
var<workgroup> slot_gates: array<f32, MAX_EXPERTS>;

fn marked(expert: u32, kind: u32) -> bool {
    return (kinds[expert] & (1u << kind)) != 0u;
}

fn run_start(expert: u32) -> u32 {
    return expert - (expert - SHARED) % ((params.experts - SHARED) / GROUPS);
}

fn rank_all(lane: u32) {
    let size = (params.experts - SHARED) / GROUPS;
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        let start = run_start(expert);
        ranks[expert] = rank_of(expert, start, start + size);
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = group.y;
    let position = spans[token].position;
    let slots = SHARED + GROUPS * params.top_k;
    let routed = params.experts - SHARED;
    let size = routed / GROUPS;
    let to = params.first + token * slots;

    for (var expert = lane; expert < params.experts; expert += LANES) {
        var z = 0.0;
        if expert >= SHARED {
            z = kept_scores[params.first_score + token * routed + expert - SHARED];
        }
        scores[expert] = z;
        var found = 0u;
        var bias = 0.0;
        for (var record = first_record(expert); record < first_record(expert + 1u); record += RECORD) {
            if is_at(record, position) {
                found |= 1u << what(record);
                bias += select(0.0, value(record), what(record) == BIAS);
            }
        }
        kinds[expert] = found;
        biases[expert] = bias;
    }
    workgroupBarrier();
    rank_all(lane);
    for (var slot = lane; slot < slots; slot += LANES) {
        slot_experts[slot] = min(chosen[to + slot], params.experts - 1u);
        slot_gates[slot] = gates[to + slot];
    }
    workgroupBarrier();

    // What happens to anybody, and what the gates of routed experts are multiplied with.
    var every = 0u;
    for (var expert = 0u; expert < params.experts; expert++) {
        every |= kinds[expert];
    }
    var factor = SCALE;
    if TWO_STAGE {
        // Where there are no others, nobody asks for it.
        let slot = min(SHARED, MAX_EXPERTS - 1u);
        let best = slot_experts[slot];
        factor = slot_gates[slot] / gate_of(best, run_start(best), run_start(best) + size);
    }
    for (var expert = lane; expert < params.experts; expert += LANES) {
        let had = expert < SHARED || ranks[expert] < params.top_k;
        count(expert, position, (1u << BIAS) | (1u << select(FORCED, MASKED, had)));
    }
    workgroupBarrier();

    let again = (every & ((1u << MASKED) | (1u << FORCED) | (1u << BIAS))) != 0u;
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        let z = scores[expert] + biases[expert];
        biases[expert] = z;
        scores[expert] = select(select(z, HIGHEST, marked(expert, FORCED)), -HIGHEST, marked(expert, MASKED));
    }
    workgroupBarrier();
    rank_all(lane);
    workgroupBarrier();
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        scores[expert] = select(biases[expert], -HIGHEST, marked(expert, MASKED));
    }
    workgroupBarrier();
    for (var expert = SHARED + lane; expert < params.experts; expert += LANES) {
        if again && ranks[expert] < params.top_k {
            let start = run_start(expert);
            let slot = SHARED + (expert - SHARED) / size * params.top_k + ranks[expert];
            slot_experts[slot] = expert;
            slot_gates[slot] = select(factor * gate_of(expert, start, start + size), 0.0, marked(expert, MASKED));
        }
    }
    workgroupBarrier();

    var all = 0.0;
    var others = 0.0;
    for (var slot = 0u; slot < slots; slot++) {
        all += slot_gates[slot];
        others += select(slot_gates[slot], 0.0, marked(slot_experts[slot], OFF));
    }
    for (var slot = lane; slot < slots; slot += LANES) {
        var gate = slot_gates[slot];
        if marked(slot_experts[slot], OFF) {
            count(slot_experts[slot], position, 1u << OFF);
            gate = 0.0;
        } else if (every & (1u << OFF)) != 0u && others != all && others != 0.0 {
            gate *= all / others;
        }
        chosen[to + slot] = slot_experts[slot];
        gates[to + slot] = gate;
    }
}

// Counts the edits of these kinds that are meant for the expert.
fn count(expert: u32, position: u32, wanted: u32) {
    for (var record = first_record(expert); record < first_record(expert + 1u); record += RECORD) {
        if (wanted & (1u << what(record))) != 0u && is_at(record, position) {
            atomicAdd(&applied[number(record)], 1u);
        }
    }
}
