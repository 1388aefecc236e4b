// Which head a query row is, for kernels that take one row at a time.
//
// chosen  [.., tokens · slots] u32, from index `first_route`

//!needs var params, fn query_from

@group(0) @binding(4) var<storage, read> chosen: array<u32>;

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
        return QueryHead(index, query_from(token, index));
    }
    let expert = chosen[params.first_route + token * params.slots + index / params.heads];
    let head = expert * params.heads + index % params.heads;
    if DENSE_QUERY {
        let last = params.q_quads / params.key_quads - 1u;
        return QueryHead(head, token * params.q_quads + min(head, last) * params.key_quads);
    }
    return QueryHead(head, query_from(token, index));
}
