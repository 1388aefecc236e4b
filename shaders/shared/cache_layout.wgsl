// Where a layer's cache keeps keys and values; the twin of src/ops/cache_layout.rs.
//
// A binding is a window on the cache: some key/value heads of some slots of some sequences, in eights of channels
//     keys [sequences, slots, heads, key_eights], then values [sequences, slots, heads, value_eights]
// of which the values start at eight `values_at`: at 0 where keys are values. Windows of the same slots are a section.

//!needs var params

struct CacheWindow {
    // Slots of a sequence.
    capacity: u32,
    first_sequence: u32,
    sequences: u32,
    first_slot: u32,
    slots: u32,
    first_head: u32,
    heads: u32,
    // Of a head.
    key_eights: u32,
    value_eights: u32,
    values_at: u32,
    // Which of the cache's sections, and how many there are.
    section: u32,
    sections: u32,
}

// Whether a sequence's head is here, in some slots.
fn in_window(sequence: u32, kv_head: u32) -> bool {
    // What lies before the first wraps to more than there are.
    return sequence - params.cache.first_sequence < params.cache.sequences
        && kv_head - params.cache.first_head < params.cache.heads;
}

// Whether this slot of it is, too.
fn slot_in_window(slot: u32) -> bool {
    return slot - params.cache.first_slot < params.cache.slots;
}

// Heads that lie before the one of a slot, in the window.
fn heads_before(sequence: u32, slot: u32, kv_head: u32) -> u32 {
    let row = (sequence - params.cache.first_sequence) * params.cache.slots + slot - params.cache.first_slot;
    return row * params.cache.heads + kv_head - params.cache.first_head;
}

// The eight at which a key starts.
fn key_at(sequence: u32, slot: u32, kv_head: u32) -> u32 {
    return heads_before(sequence, slot, kv_head) * params.cache.key_eights;
}

// The eight at which a value starts.
fn value_at(sequence: u32, slot: u32, kv_head: u32) -> u32 {
    return params.cache.values_at + heads_before(sequence, slot, kv_head) * params.cache.value_eights;
}
