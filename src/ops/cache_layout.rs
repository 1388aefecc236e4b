//! Where a cache keeps keys and values: the one place that knows, with its twin `shaders/shared/cache_layout.wgsl`.
//!
//! A sequence has as many *slots* as the cache has capacity, and a slot the key and the value of one token for every
//! key/value head. What one binding takes of this is a *window*, some heads of some sequences, in eights of channels:
//!
//! ```text
//! keys [sequences, capacity, heads, key eights], then values [sequences, capacity, heads, value eights]
//! ```
//!
//! A cache that one binding holds is one window.

use super::padded;

/// How a key/value cache holds its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePrecision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats: half the memory, keys and values rounded to 11 bits.
    F16,
}

impl CachePrecision {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// The constant of `shaders/shared/cache.wgsl`.
    pub(super) fn constant(self) -> (&'static str, f64) {
        ("CACHE_F16", f64::from(u8::from(self == Self::F16)))
    }
}

/// The sizes of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    pub sequences: u32,
    /// Slots of each sequence.
    pub capacity: u32,
    pub kv_heads: u32,
    /// Channels of a key, and of a value.
    pub key_dim: u32,
    pub value_dim: u32,
    /// Keys are values, too: they are there once.
    pub keys_are_values: bool,
    pub precision: CachePrecision,
}

uniform! {
    /// A window, as kernels read it.
    struct CacheWindow {
        capacity: u32,
        first_sequence: u32,
        sequences: u32,
        first_head: u32,
        heads: u32,
        key_eights: u32,
        value_eights: u32,
        values_at: u32,
    }
}

/// The heads and sequences of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first_sequence: u32,
    pub sequences: u32,
    pub first_head: u32,
    pub heads: u32,
}

/// A run of bytes of a window: some slots of one sequence, keys or values of all the window's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub offset: u64,
    pub bytes: u64,
}

impl CacheLayout {
    /// Bytes of one key, and of one value.
    pub fn key_bytes(&self) -> u64 {
        self.precision.bytes() * u64::from(padded(self.key_dim))
    }

    pub fn value_bytes(&self) -> u64 {
        self.precision.bytes() * u64::from(padded(self.value_dim))
    }

    /// Bytes that a head takes in a slot.
    fn slot_bytes(&self) -> u64 {
        self.key_bytes() + if self.keys_are_values { 0 } else { self.value_bytes() }
    }

    /// Bytes of a window of `heads` heads of `sequences` sequences.
    fn window_bytes(&self, sequences: u32, heads: u32) -> u64 {
        self.slots(sequences, heads) * self.slot_bytes()
    }

    /// Slots of `heads` heads of `sequences` sequences.
    fn slots(&self, sequences: u32, heads: u32) -> u64 {
        [sequences, self.capacity, heads].iter().map(|&n| u64::from(n)).product()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> u64 {
        self.window_bytes(self.sequences, self.kv_heads)
    }

    /// Bytes of the first `count` slots of a sequence.
    pub fn sequence_bytes(&self, count: u32) -> u64 {
        Self { capacity: count, ..*self }.window_bytes(1, self.kv_heads)
    }

    /// Bytes of the smallest window: one head of one sequence.
    pub fn least_window_bytes(&self) -> u64 {
        self.window_bytes(1, 1)
    }

    /// Bytes that reading `keys` keys and their values takes, those of all heads.
    pub(super) fn read_bytes(&self, keys: u64) -> u64 {
        keys * u64::from(self.kv_heads) * (self.key_bytes() + self.value_bytes())
    }

    /// The fewest windows, alike as far as may be, none of which takes more than `most` bytes: whole where that fits, else cut by
    /// heads, else by sequences, too.
    pub fn windows(&self, most: u64) -> Vec<Window> {
        // As many of `all` as fit where one takes `each` bytes, at least one.
        let share = |all: u32, each: u64| {
            let fit = (most / each.max(1)).clamp(1, u64::from(all.max(1))) as u32;
            all.max(1).div_ceil(all.max(1).div_ceil(fit))
        };
        let heads = share(self.kv_heads, self.window_bytes(self.sequences, 1));
        let sequences = share(self.sequences, self.window_bytes(1, heads));
        let mut windows = Vec::new();
        for first_sequence in (0..self.sequences).step_by(sequences as usize) {
            for first_head in (0..self.kv_heads).step_by(heads as usize) {
                windows.push(Window {
                    first_sequence,
                    sequences: sequences.min(self.sequences - first_sequence),
                    first_head,
                    heads: heads.min(self.kv_heads - first_head),
                });
            }
        }
        windows
    }

    /// Bytes of a window.
    pub fn bytes_of(&self, window: &Window) -> u64 {
        self.window_bytes(window.sequences, window.heads)
    }

    /// Bytes before a window's values.
    fn values_offset(&self, window: &Window) -> u64 {
        if self.keys_are_values { 0 } else { self.slots(window.sequences, window.heads) * self.key_bytes() }
    }

    /// Where `window` has the keys, then (unless these are the keys) the values of slots `first` to `first + count` of a sequence
    /// that is in it.
    pub fn runs(&self, window: &Window, sequence: u32, first: u32, count: u32) -> Vec<Run> {
        let slot = u64::from(sequence - window.first_sequence) * u64::from(self.capacity) + u64::from(first);
        let run = |offset: u64, head_bytes: u64| {
            let row = u64::from(window.heads) * head_bytes;
            Run { offset: offset + slot * row, bytes: u64::from(count) * row }
        };
        let keys = run(0, self.key_bytes());
        match self.keys_are_values {
            true => vec![keys],
            false => vec![keys, run(self.values_offset(window), self.value_bytes())],
        }
    }

    /// What kernels read of a window.
    pub(super) fn params(&self, window: &Window) -> CacheWindow {
        CacheWindow {
            capacity: self.capacity,
            first_sequence: window.first_sequence,
            sequences: window.sequences,
            first_head: window.first_head,
            heads: window.heads,
            key_eights: padded(self.key_dim) / 8,
            value_eights: padded(self.value_dim) / 8,
            values_at: (self.values_offset(window) / (8 * self.precision.bytes())) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: CacheLayout = CacheLayout {
        sequences: 3,
        capacity: 10,
        kv_heads: 5,
        key_dim: 12,
        value_dim: 20,
        keys_are_values: false,
        precision: CachePrecision::F32,
    };

    /// Every head of every sequence is in one window; none is larger than it may be.
    #[test]
    fn windows_hold_everything_once() {
        // A head of a sequence: 10 slots of 16 + 24 floats.
        let least = 10 * 40 * 4;
        assert_eq!((LAYOUT.least_window_bytes(), LAYOUT.bytes()), (least, 15 * least));
        for (most, count) in [(15 * least, 1), (14 * least, 2), (6 * least, 3), (3 * least, 5), (least, 15)] {
            let windows = LAYOUT.windows(most);
            assert_eq!(windows.len(), count, "at most {most} bytes");
            let mut places: Vec<(u32, u32)> = windows
                .iter()
                .flat_map(|window| {
                    assert!(LAYOUT.bytes_of(window) <= most);
                    let heads = window.first_head..window.first_head + window.heads;
                    let sequences = window.first_sequence..window.first_sequence + window.sequences;
                    sequences.flat_map(move |sequence| heads.clone().map(move |head| (sequence, head)))
                })
                .collect();
            places.sort_unstable();
            let all: Vec<(u32, u32)> = (0..15).map(|i| (i / 5, i % 5)).collect();
            assert_eq!(places, all, "at most {most} bytes");
        }
    }

    /// Slots 4 and 5 of the second sequence of a window of two heads.
    #[test]
    fn runs_are_keys_then_values() {
        let window = Window { first_sequence: 1, sequences: 2, first_head: 2, heads: 2 };
        let runs = LAYOUT.runs(&window, 2, 4, 2);
        let [key_row, value_row] = [2 * 16 * 4, 2 * 24 * 4];
        let keys = Run { offset: 14 * key_row, bytes: 2 * key_row };
        let values = Run { offset: 20 * key_row + 14 * value_row, bytes: 2 * value_row };
        assert_eq!(runs, [keys, values]);
        let same = CacheLayout { keys_are_values: true, value_dim: 12, ..LAYOUT };
        assert_eq!(same.runs(&window, 2, 4, 2), [keys]);
    }

    #[test]
    fn half_precision_takes_half_the_bytes() {
        let half = CacheLayout { precision: CachePrecision::F16, ..LAYOUT };
        assert_eq!(2 * half.bytes(), LAYOUT.bytes());
        // Places are counted in eights, whatever these take.
        let window = LAYOUT.windows(u64::MAX)[0];
        assert_eq!(half.params(&window).values_at, LAYOUT.params(&window).values_at);
    }
}
