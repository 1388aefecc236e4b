// Heads and tokens that someone asked for.

//!needs var params, var asked, var chosen

// Heads count by expert: head j of expert e is e · heads + j.
override ROUTED: bool = true;

// The i-th asked token.
fn asked_token(i: u32) -> u32 {
    return min(asked[params.asked_heads + i], params.tokens - 1u);
}

// Which of a token's heads (slot-major) is head `unit`; one behind its last where the token did not choose it.
fn index_of(token: u32, unit: u32) -> u32 {
    if !ROUTED {
        return unit;
    }
    for (var slot = 0u; slot < params.slots; slot++) {
        if chosen[params.first_route + token * params.slots + slot] == unit / params.heads {
            return slot * params.heads + unit % params.heads;
        }
    }
    return params.slots * params.heads;
}
