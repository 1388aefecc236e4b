//! What edits make of a head's output, and of a router's choice.
//!
//! ```text
//! z'      = (1 − u) · z + u · m,   m the value of the row's own key, or the mean of those that the row sees
//! ```
//!
//! ```text
//! z'      = z + Σ biases
//! choice  of each group: forced experts first, then the others by z', masked ones last; k of them
//! gate    = α · weight(z' of the group without the masked), 0 for a masked expert
//! off     gates of these 0; the others · (Σ gates / Σ gates of the others)
//! ```

use super::router::{Select, Weight};

/// What happens to one expert.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertEdit {
    /// Its gate becomes 0, and the others' grow.
    pub off: bool,
    /// It cannot be chosen.
    pub masked: bool,
    /// It is chosen.
    pub forced: bool,
    /// Added to its score.
    pub bias: f64,
}

/// How a router without its scores chooses.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The first experts, which every token keeps.
    pub shared: usize,
    /// Equal runs of the others.
    pub groups: usize,
    /// Kept of each group.
    pub top_k: usize,
    /// The weights of those kept.
    pub weight: Weight,
    /// What multiplies them, α.
    pub factor: f64,
}

/// The experts and gates of one token: `scores` are those of the routed experts, `shared` the gates of the shared ones, `edits`
/// one for each expert. The margin is the least distance between a kept and a dropped expert that are neither masked nor forced.
pub fn edit_routes(
    choice: &Choice,
    scores: &[f64],
    shared: &[f64],
    edits: &[ExpertEdit],
) -> (Vec<u32>, Vec<f64>, f64) {
    let mut experts: Vec<u32> = (0..choice.shared as u32).collect();
    let mut gates = shared.to_vec();
    let mut margin = f64::INFINITY;
    let size = scores.len() / choice.groups;
    for (group, scores) in scores.chunks_exact(size).enumerate() {
        let first = choice.shared + group * size;
        let edits = &edits[first..first + size];
        let biased: Vec<f64> = scores.iter().zip(edits).map(|(z, edit)| z + edit.bias).collect();
        let rank = |e: usize| match edits[e] {
            ExpertEdit { masked: true, .. } => f64::MIN,
            ExpertEdit { forced: true, .. } => f64::MAX,
            _ => biased[e],
        };
        let ranks: Vec<f64> = (0..size).map(rank).collect();
        let (kept, own) = Select::TopK(choice.top_k).of(&ranks);
        // Which of two forced, or masked, experts comes first is not a matter of rounding.
        if kept.last().is_some_and(|&e| ranks[e].abs() < f64::MAX) {
            margin = margin.min(own);
        }
        let open: Vec<usize> = (0..size).filter(|&e| !edits[e].masked).collect();
        let open_scores: Vec<f64> = open.iter().map(|&e| biased[e]).collect();
        let kept_open: Vec<usize> = kept.iter().filter_map(|e| open.iter().position(|o| o == e)).collect();
        let mut weights = choice.weight.of(&open_scores, &kept_open).into_iter();
        for e in kept {
            experts.push((first + e) as u32);
            let weight = if edits[e].masked { 0.0 } else { weights.next().expect("a weight for each") };
            gates.push(choice.factor * weight);
        }
    }
    let is_off = |expert: &u32| edits[*expert as usize].off;
    let all: f64 = gates.iter().sum();
    let others: f64 = experts.iter().zip(&gates).filter(|(e, _)| !is_off(e)).map(|(_, gate)| gate).sum();
    for (expert, gate) in experts.iter().zip(&mut gates) {
        *gate = match is_off(expert) {
            true => 0.0,
            false if others == 0.0 => *gate,
            false => *gate * all / others,
        };
    }
    (experts, gates, margin)
}

/// (1 − u) · z + u · m.
pub fn blend(z: &[f64], m: &[f64], u: f64) -> Vec<f64> {
    z.iter().zip(m).map(|(z, m)| (1.0 - u) * z + u * m).collect()
}

/// The sum of rows of `width`, each by its weight.
pub fn weighed(rows: &[(Vec<f64>, f64)], width: usize) -> Vec<f64> {
    (0..width).map(|i| rows.iter().map(|(row, weight)| weight * row[i]).sum()).collect()
}

/// The mean of rows of `width`.
pub fn mean(rows: &[f64], width: usize) -> Vec<f64> {
    let count = (rows.len() / width) as f64;
    (0..width).map(|i| rows.iter().skip(i).step_by(width).sum::<f64>() / count).collect()
}
