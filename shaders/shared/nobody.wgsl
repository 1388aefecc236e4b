// The expert of a slot that a token leaves empty: no group holds it, and its gate is 0.
const NOBODY: u32 = 0xffffffffu;
