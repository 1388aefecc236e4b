// Which head a query row is, for kernels that take one row at a time.
//
// chosen  [.., tokens · slots] u32, from index `first`

//!needs var params, fn slot_start

@group(0) @binding(5) var<storage, read> chosen: array<u32>;

// Heads count over experts (h = expert · heads + j) instead of slots, because the key/value head depends on it.
override EXPERT_HEADS: bool = false;
// Queries hold all experts' heads, [tokens, experts · heads], instead of the chosen experts' alone.
override DENSE_QUERY: bool = false;

// The head of the index-th query head of a token, and where its query starts.
struct QueryHead {
    head: u32,
    start: u32,
}

fn query_head(token: u32, index: u32) -> QueryHead {
    if !EXPERT_HEADS {
        return QueryHead(index, slot_start(token, index, params.q_quads));
    }
    let expert = chosen[params.first + token * params.slots + index / params.heads];
    let head = expert * params.heads + index % params.heads;
    if DENSE_QUERY {
        let last = params.q_quads / params.head_quads - 1u;
        return QueryHead(head, token * params.q_quads + min(head, last) * params.head_quads);
    }
    return QueryHead(head, slot_start(token, index, params.q_quads));
}
