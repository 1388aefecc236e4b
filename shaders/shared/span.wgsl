// Where a row stands, in three things that are three things: its position (the angle it turns by, what sampling counts by), the
// slot in which its sequence's cache keeps its key (distances are those of slots), and what it sees, the slots from `first` to
// before `end` (up to its own where attention is causal; none where a head leaves a token out).
struct Span {
    position: u32,
    sequence: u32,
    slot: u32,
    first: u32,
    end: u32,
}
