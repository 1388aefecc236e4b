// sequence_cut: every head takes the same number of tokens of every sequence, L (UoE, arXiv 2503.02495)
//
//     L = max over heads h and sequences b of #{t in b : h kept t}
//     head h takes of a sequence the tokens that kept it, and the earliest others until it has L
//
// A head then works on its tokens as if the others were not there: the i-th has position i and sees i + 1 keys, or
// all L unless CAUSAL.
//
// kept    [tokens, top_k] u32: heads that each token kept
// ranges  [sequences] (first token, tokens)
// spans   [tokens, heads] Span, without keys where a head leaves a token out
// chosen  [.., tokens, heads] u32, from index `first`: slot h is head h, or NOBODY; gates likewise 1 or 0
// grid    one workgroup; llvmpipe's 65,535 turns (see row_attention_prefill) are 12,000 tokens with 64 heads

struct Params {
    tokens: u32,
    heads: u32,
    top_k: u32,
    sequences: u32,
    first: u32,
}

//!include "shared/span.wgsl"
//!include "shared/nobody.wgsl"

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> kept: array<u32>;
@group(0) @binding(2) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> spans: array<Span>;
@group(0) @binding(4) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(5) var<storage, read_write> gates: array<f32>;

override CAUSAL: bool = true;

var<workgroup> most: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    // Marks: end = 1 where a token kept a head.
    for (var i = lane; i < params.tokens * params.heads; i += LANES) {
        spans[i].end = 0u;
    }
    storageBarrier();
    for (var i = lane; i < params.tokens * params.top_k; i += LANES) {
        spans[i / params.top_k * params.heads + min(kept[i], params.heads - 1u)].end = 1u;
    }
    storageBarrier();

    let parts = params.sequences * params.heads;
    var length = 0u;
    for (var part = lane; part < parts; part += LANES) {
        let range = ranges[part / params.heads];
        var count = 0u;
        for (var i = 0u; i < range.y; i++) {
            count += spans[(range.x + i) * params.heads + part % params.heads].end;
        }
        length = max(length, count);
    }
    most[lane] = length;
    workgroupBarrier();
    for (var other = 0u; other < LANES; other++) {
        length = max(length, most[other]);
    }

    for (var part = lane; part < parts; part += LANES) {
        let range = ranges[part / params.heads];
        let head = part % params.heads;
        let own_length = min(length, range.y);
        var count = 0u;
        for (var i = 0u; i < range.y; i++) {
            count += spans[(range.x + i) * params.heads + head].end;
        }
        var fillers = own_length - min(count, own_length);
        var place = 0u;
        for (var i = 0u; i < range.y; i++) {
            let at = (range.x + i) * params.heads + head;
            var takes = spans[at].end == 1u;
            if !takes && fillers > 0u {
                takes = true;
                fillers--;
            }
            let end = select(own_length, place + 1u, CAUSAL);
            spans[at] = Span(place, part / params.heads, place, 0u, select(0u, end, takes));
            chosen[params.first + at] = select(NOBODY, head, takes);
            gates[params.first + at] = select(0.0, 1.0, takes);
            place += u32(takes);
        }
    }
}
