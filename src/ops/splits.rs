//! How the keys of rows are split, and the scratch that this takes: beside `shaders/shared/splits.wgsl`, which lays it out.

use super::{DECODE_SPLIT_KEYS, HeadLayout, KeyValues, Sections};

/// Splits of a row at the most, where its keys lie in several sections of a cache.
const MOST_SPLITS: u32 = 512;

/// Over how many workgroups a row's keys are split. Each section of a cache has splits of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splits {
    /// Of a row, in all sections.
    pub all: u32,
    /// In each of them.
    pub each: u32,
    /// Keys of a split.
    pub keys: u32,
}

impl Splits {
    /// One in each section, or for rows that see at most so many keys as many as keep a GPU busy.
    pub fn of(cache: &KeyValues, most_keys: Option<u32>) -> Self {
        let sections = cache.sections();
        let Some(most_keys) = most_keys else {
            return Self { all: sections, each: 1, keys: cache.layout.capacity };
        };
        let seen = most_keys.min(cache.section_slots());
        let each = HeadLayout::splits(seen);
        let each = if sections > 1 { each.min((MOST_SPLITS / sections).max(1)) } else { each };
        let keys = seen.max(1).div_ceil(each).next_multiple_of(DECODE_SPLIT_KEYS);
        Self { all: each * sections, each, keys }
    }
}

/// Splits of a query head of all tokens that scratch holds, in steps of at most `tokens` tokens that see at most `keys` keys, where
/// `few` tokens are split by keys. None where there is one split. Of a cache that grows all sections may be there or only some.
pub fn scratch_splits([few, tokens]: [u32; 2], keys: u32, sections: Sections) -> u64 {
    let Sections { count, slots } = sections;
    let of_one = HeadLayout::splits(keys.min(slots));
    let of_all = of_one.saturating_mul(count).min(MOST_SPLITS.max(count));
    let all = |tokens: u32, splits: u32| u64::from(tokens) * u64::from(splits);
    match (count, of_one) {
        (1, 1) => 0,
        (1, _) => all(few, of_one),
        _ => all(few, of_one.max(of_all)).max(all(tokens, count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_holds_what_any_step_leaves() {
        let whole = Sections::default();
        let cut = |count, slots| Sections { count, slots };
        for ([few, tokens], keys, sections, expected) in [
            // One section: only few tokens are split, and only where they see more than one split's keys.
            ([4, 512], 256, whole, 0),
            ([4, 512], 257, whole, 4 * 2),
            ([4, 512], 1 << 20, whole, 4 * 4096),
            // Each token leaves something of each section, few of them several splits.
            ([4, 512], 256, cut(2, 128), 512 * 2),
            ([4, 512], 1 << 18, cut(2, 1 << 17), 4 * 512),
            ([4, 5], 600, cut(3, 300), 4 * 3 * 2),
            ([4, 5], 1 << 20, cut(1000, 1 << 10), 5 * 1000),
            // Of three sections a row has 3 × 170 splits, of two 2 × 256.
            ([4, 5], 1 << 20, cut(3, 1 << 19), 4 * 2048),
            ([4, 5], 3 << 17, cut(3, 1 << 17), 4 * 512),
            // One section alone is split as if there were no others.
            ([4, 5], 1 << 20, cut(2, 1 << 19), 4 * 2048),
        ] {
            let found = scratch_splits([few, tokens], keys, sections);
            assert_eq!(found, expected, "{keys} keys, {sections:?}");
        }
    }
}
