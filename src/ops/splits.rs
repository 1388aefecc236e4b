//! How the keys of rows are split, and the scratch that this takes: beside `shaders/shared/splits.wgsl`, which lays it out.

use super::{DECODE_SPLIT_KEYS, HeadLayout, KeyValues};

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
        let each = splits_of_section(seen, sections);
        let keys = seen.max(1).div_ceil(each).next_multiple_of(DECODE_SPLIT_KEYS);
        Self { all: each * sections, each, keys }
    }
}

/// Splits for rows that see at most `keys` keys of each of `sections` sections.
fn splits_of_section(keys: u32, sections: u32) -> u32 {
    let splits = HeadLayout::splits(keys);
    if sections <= 1 { splits } else { splits.min((MOST_SPLITS / sections).max(1)) }
}

/// Splits of a query head of all tokens that scratch holds, in steps of at most `tokens` tokens that see at most `keys` keys of
/// caches of at most `sections` sections, where `few` tokens are split by keys. None where there is one split.
pub fn scratch_splits([few, tokens]: [u32; 2], keys: u32, sections: u32) -> u64 {
    let sections = sections.max(1);
    let all = |tokens: u32, each: u32| u64::from(tokens) * u64::from(each) * u64::from(sections);
    match (sections, splits_of_section(keys, sections)) {
        (1, 1) => 0,
        (1, each) => all(few, each),
        (_, each) => all(few, each).max(all(tokens, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_holds_what_any_step_leaves() {
        for ([few, tokens], keys, sections, expected) in [
            // One section: only few tokens are split, and only where they see more than one split's keys.
            ([4, 512], 256, 1, 0),
            ([4, 512], 257, 1, 4 * 2),
            ([4, 512], 1 << 20, 1, 4 * 4096),
            // Each token leaves something of each section, few of them several splits.
            ([4, 512], 256, 2, 512 * 2),
            ([4, 512], 1 << 18, 2, 4 * 512),
            ([4, 5], 600, 3, 4 * 3 * 3),
            ([4, 5], 1 << 20, 8, 4 * 512),
            ([4, 5], 1 << 20, 1000, 5 * 1000),
        ] {
            assert_eq!(
                scratch_splits([few, tokens], keys, sections),
                expected,
                "{keys} keys, {sections} sections"
            );
        }
    }
}
