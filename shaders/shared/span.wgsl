// Where a row stands: its position, the sequence whose cache it reads and writes, and how many of that cache's first
// keys it sees (position + 1 where attention is causal; 0 where a head leaves a token out).
struct Span {
    position: u32,
    sequence: u32,
    keys: u32,
}
