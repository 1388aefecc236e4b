//! Assignments grouped by expert: a stable counting sort, and the tiles a grouped product walks over
//! (Gale et al. 2022, arXiv 2211.15841, describe the same plan for mixture-of-experts layers).

/// Assignments sorted by expert, equal experts in their old order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `[experts]`: how many assignments chose each.
    pub counts: Vec<u32>,
    /// `[experts + 1]`: where each expert's assignments begin in `order`; the last is their number.
    pub offsets: Vec<u32>,
    /// `[assignments]`: assignment ids, expert by expert.
    pub order: Vec<u32>,
}

/// counts\[e\] = #{a : experts\[a\] = e}; offsets\[e\] = Σ_{f<e} counts\[f\]; order = (expert, a) sorted.
pub fn group(experts: &[u32], expert_count: usize) -> Group {
    let mut counts = vec![0; expert_count];
    for &expert in experts {
        counts[expert as usize] += 1;
    }
    let mut offsets = vec![0; expert_count + 1];
    for expert in 0..expert_count {
        offsets[expert + 1] = offsets[expert] + counts[expert];
    }
    let mut order: Vec<u32> = (0..experts.len() as u32).collect();
    order.sort_by_key(|&assignment| (experts[assignment as usize], assignment));
    Group { counts, offsets, order }
}

/// At most `height` rows of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Whose rows.
    pub expert: u32,
    /// The first, as an index into `Group::order`.
    pub first: u32,
    /// How many, at least 1.
    pub rows: u32,
}

/// Each expert's run of `order` cut into tiles of `height` rows, the last of them shorter; no tile for
/// an empty expert.
pub fn tile_table(group: &Group, height: u32) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (expert, run) in group.offsets.windows(2).enumerate() {
        for first in (run[0]..run[1]).step_by(height as usize) {
            tiles.push(Tile { expert: expert as u32, first, rows: height.min(run[1] - first) });
        }
    }
    tiles
}
