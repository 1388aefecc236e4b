// Which key/value head a query head reads, and where its row lies.

//!needs var params

fn kv_head_of(head: u32) -> u32 {
    return (head / params.group) % params.kv_heads;
}

// Where query head `index` of a token (slot-major over its slots) starts in rows of `quads` vec4s a slot, heads of `head_quads`.
fn slot_start(token: u32, index: u32, quads: u32, head_quads: u32) -> u32 {
    let row = token * params.slots + index / params.heads;
    return row * quads + (index % params.heads) * head_quads;
}

fn query_from(token: u32, index: u32) -> u32 {
    return slot_start(token, index, params.q_quads, params.key_quads);
}
