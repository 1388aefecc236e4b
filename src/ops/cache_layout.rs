//! Where a cache keeps keys and values: the one place that knows, with its twin `shaders/shared/cache_layout.wgsl`.
//!
//! A sequence has as many *slots* as the cache has capacity, and a slot the key and the value of one token for every
//! key/value head. What one binding takes of this is a *window*, some heads of some slots of some sequences, in eights of channels:
//!
//! ```text
//! keys [sequences, slots, heads, key eights], then values [sequences, slots, heads, value eights]
//! ```
//!
//! A cache that one binding holds is one window. Windows that begin at the same slot are a *section*; there is one, unless a
//! single head of a single sequence is more than a binding holds.

use super::padded;

/// A binding holds at least so many slots of one head, if the cache has them: no fewer than a decoding workgroup reads, so that
/// there are few dispatches.
const LEAST_SLOTS: u32 = 256;

/// How a key/value cache holds its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
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
        first_slot: u32,
        slots: u32,
        first_head: u32,
        heads: u32,
        key_eights: u32,
        value_eights: u32,
        values_at: u32,
        section: u32,
        sections: u32,
    }
}

/// The sequences, slots and heads of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first_sequence: u32,
    pub sequences: u32,
    pub first_slot: u32,
    pub slots: u32,
    pub first_head: u32,
    pub heads: u32,
}

/// How the slots of caches are cut into sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    /// Sections of a cache at the most.
    pub count: u32,
    /// Slots of one at the most.
    pub slots: u32,
}

impl Default for Sections {
    /// Not at all.
    fn default() -> Self {
        Self { count: 1, slots: u32::MAX }
    }
}

impl Sections {
    /// Of caches that are cut in either way.
    pub fn or(self, other: Self) -> Self {
        Self { count: self.count.max(other.count), slots: self.slots.max(other.slots) }
    }
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

    /// Bytes of a window of so many sequences, slots and heads.
    fn window_bytes(&self, [sequences, slots, heads]: [u32; 3]) -> u64 {
        [sequences, slots, heads].map(u64::from).iter().product::<u64>() * self.slot_bytes()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> u64 {
        self.window_bytes([self.sequences, self.capacity, self.kv_heads])
    }

    /// Bytes of the first `count` slots of a sequence.
    pub fn sequence_bytes(&self, count: u32) -> u64 {
        self.window_bytes([1, count, self.kv_heads])
    }

    /// Slots of the smallest window.
    pub fn least_slots(&self) -> u32 {
        self.capacity.min(LEAST_SLOTS)
    }

    /// Bytes of the smallest window: a few slots of one head of one sequence.
    pub fn least_window_bytes(&self) -> u64 {
        self.window_bytes([1, self.least_slots(), 1])
    }

    /// Bytes that reading `keys` keys and their values takes, those of all heads.
    pub(super) fn read_bytes(&self, keys: u64) -> u64 {
        keys * u64::from(self.kv_heads) * (self.key_bytes() + self.value_bytes())
    }

    /// The fewest windows, alike as far as may be, none of which takes more than `most` bytes: whole where that fits, else cut by
    /// heads, else by sequences, too, and as the last resort by slots.
    pub fn windows(&self, most: u64) -> Vec<Window> {
        // As many of `all` as fit where one takes `each` bytes, at least `least`.
        let share = |all: u32, each: u64, least: u32| {
            let all = all.max(1);
            let fit = (most / each.max(1)).clamp(u64::from(least.max(1)), u64::from(all)) as u32;
            all.div_ceil(all.div_ceil(fit))
        };
        let heads = share(self.kv_heads, self.window_bytes([self.sequences, self.capacity, 1]), 1);
        let sequences = share(self.sequences, self.window_bytes([1, self.capacity, heads]), 1);
        let slots = share(self.capacity, self.window_bytes([sequences, 1, heads]), self.least_slots());
        self.cut([sequences, slots, heads])
    }

    /// Windows of so many sequences, slots and heads, in the order of sequences, then of slots.
    pub fn cut(&self, [sequences, slots, heads]: [u32; 3]) -> Vec<Window> {
        // A cache without slots has windows, too: empty ones.
        let starts = |all: u32, each: u32| (0..all.max(1)).step_by(each.max(1) as usize);
        let mut windows = Vec::new();
        for first_sequence in starts(self.sequences, sequences) {
            for first_slot in starts(self.capacity, slots) {
                for first_head in starts(self.kv_heads, heads) {
                    windows.push(Window {
                        first_sequence,
                        sequences: sequences.min(self.sequences - first_sequence),
                        first_slot,
                        slots: slots.min(self.capacity - first_slot),
                        first_head,
                        heads: heads.min(self.kv_heads - first_head),
                    });
                }
            }
        }
        windows
    }

    /// Bytes of a window.
    pub fn bytes_of(&self, window: &Window) -> u64 {
        self.window_bytes([window.sequences, window.slots, window.heads])
    }

    /// Bytes before a window's values.
    fn values_offset(&self, window: &Window) -> u64 {
        let Window { sequences, slots, heads, .. } = *window;
        let places: u64 = [sequences, slots, heads].map(u64::from).iter().product();
        if self.keys_are_values { 0 } else { places * self.key_bytes() }
    }

    /// Where `window` has the keys, then (unless these are the keys) the values of those of the slots `first` to `first + count`
    /// that are in it, as the sequence is; nothing where there are none.
    pub fn runs(&self, window: &Window, sequence: u32, first: u32, count: u32) -> Vec<Run> {
        let from = first.max(window.first_slot);
        let count = (first + count).min(window.first_slot + window.slots).saturating_sub(from);
        if count == 0 {
            return Vec::new();
        }
        let before = u64::from(sequence - window.first_sequence) * u64::from(window.slots);
        let slot = before + u64::from(from - window.first_slot);
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

    /// What kernels read of a window, which is in one of the cache's `sections`.
    pub(super) fn params(&self, window: &Window, section: u32, sections: u32) -> CacheWindow {
        CacheWindow {
            capacity: self.capacity,
            first_sequence: window.first_sequence,
            sequences: window.sequences,
            first_slot: window.first_slot,
            slots: window.slots,
            first_head: window.first_head,
            heads: window.heads,
            key_eights: padded(self.key_dim) / 8,
            value_eights: padded(self.value_dim) / 8,
            values_at: (self.values_offset(window) / (8 * self.precision.bytes())) as u32,
            section,
            sections,
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
        let window =
            Window { first_sequence: 1, sequences: 2, first_slot: 0, slots: 10, first_head: 2, heads: 2 };
        let runs = LAYOUT.runs(&window, 2, 4, 2);
        let [key_row, value_row] = [2 * 16 * 4, 2 * 24 * 4];
        let keys = Run { offset: 14 * key_row, bytes: 2 * key_row };
        let values = Run { offset: 20 * key_row + 14 * value_row, bytes: 2 * value_row };
        assert_eq!(runs, [keys, values]);
        let same = CacheLayout { keys_are_values: true, value_dim: 12, ..LAYOUT };
        assert_eq!(same.runs(&window, 2, 4, 2), [keys]);
    }

    /// Of a window of slots 4 to 7 the part that is asked for, from where its own slots start.
    #[test]
    fn runs_are_what_a_window_has_of_them() {
        let window =
            Window { first_sequence: 1, sequences: 2, first_slot: 4, slots: 3, first_head: 2, heads: 2 };
        let [key_row, value_row] = [2 * 16 * 4, 2 * 24 * 4];
        let runs = |first: u64, slots: u64| {
            let keys = Run { offset: first * key_row, bytes: slots * key_row };
            let values = Run { offset: 6 * key_row + first * value_row, bytes: slots * value_row };
            [keys, values]
        };
        assert_eq!(LAYOUT.runs(&window, 1, 0, 10), runs(0, 3));
        assert_eq!(LAYOUT.runs(&window, 2, 0, 6), runs(3, 2));
        assert_eq!(LAYOUT.runs(&window, 2, 6, 4), runs(5, 1));
        for (first, count) in [(0, 4), (7, 3), (5, 0)] {
            assert_eq!(LAYOUT.runs(&window, 1, first, count), []);
        }
    }

    /// A head of a sequence that one window does not hold is cut by slots, into as few parts as can be, alike but for the last.
    #[test]
    fn windows_are_cut_by_slots_last() {
        let long = CacheLayout { sequences: 2, capacity: 1000, kv_heads: 3, ..LAYOUT };
        let slot = 40 * 4;
        assert_eq!(long.least_window_bytes(), 256 * slot);
        for (most, slots) in [
            (1000 * slot, vec![1000]),
            (1000 * slot - 1, vec![500, 500]),
            (340 * slot, vec![334, 334, 332]),
            (1, vec![250, 250, 250, 250]),
        ] {
            let mut expected = Vec::new();
            for first_sequence in 0..2 {
                let mut first_slot = 0;
                for &slots in &slots {
                    expected.extend((0..3).map(|first_head| Window {
                        first_sequence,
                        sequences: 1,
                        first_slot,
                        slots,
                        first_head,
                        heads: 1,
                    }));
                    first_slot += slots;
                }
            }
            assert_eq!(long.windows(most), expected, "at most {most} bytes");
        }
    }

    #[test]
    fn half_precision_takes_half_the_bytes() {
        let half = CacheLayout { precision: CachePrecision::F16, ..LAYOUT };
        assert_eq!(2 * half.bytes(), LAYOUT.bytes());
        // Places are counted in eights, whatever these take.
        let window = LAYOUT.windows(u64::MAX)[0];
        assert_eq!(half.params(&window, 0, 1).values_at, LAYOUT.params(&window, 0, 1).values_at);
    }
}
