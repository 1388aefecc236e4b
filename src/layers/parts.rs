//! Where the parts of a sublayer stand while a pass goes through it.

use crate::{
    layers::{AttentionSite, Inside, Place, Site},
    ops::{HeadLayout, HeadRows, NewKeys, Queries, padded},
};

/// What of a sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SitePart {
    /// Queries of heads, as projected.
    Queries,
    /// Keys, and values, of key/value heads, as projected.
    Keys,
    Values,
    /// What heads put out.
    Outputs,
    /// The inside of MLP experts.
    Hidden,
    /// The residual stream before the sublayer, and behind it.
    Before,
    After,
}

/// Where a part stands at a place, if it stands there.
pub fn stored<'a>(site: &Site<'a>, part: SitePart) -> Option<HeadRows<'a>> {
    let workspace = site.workspace;
    let whole = HeadRows {
        rows: &workspace.x,
        row: padded(workspace.width),
        first: 0,
        slots: 1,
        heads: 1,
        stride: padded(workspace.width),
        routes: None,
    };
    match (site.place, part) {
        (Place::Queries, SitePart::Before) | (Place::Output, SitePart::After) => return Some(whole),
        _ => {}
    }
    let AttentionSite { heads, new, routes, .. } = match site.inside {
        Inside::Attention(attention) => attention,
        Inside::Mlp { hidden } => {
            let (rows, row, slots) =
                (&workspace.hidden, padded(hidden), site.rows.assignments() / site.step.tokens.max(1));
            let inside = HeadRows { rows, row, slots, stride: row, routes: site.rows.routes(), ..whole };
            return Some(inside).filter(|_| (site.place, part) == (Place::Hidden, SitePart::Hidden));
        }
    };
    let HeadLayout { slots, heads: each, kv_heads, .. } = heads;
    let [keys, values] = heads.kv_widths();
    match (site.place, part) {
        (Place::Queries, SitePart::Queries) => {
            let (slots, each, routes) = match heads.queries {
                Queries::Dense { experts } => (1, experts * each, None),
                Queries::BySlot | Queries::ByExpert => (slots, each, routes),
            };
            let (rows, row, stride) = (&workspace.q, heads.q_row(), heads.key_stride());
            Some(HeadRows { rows, row, slots, heads: each, stride, routes, ..whole })
        }
        (Place::Queries, SitePart::Keys | SitePart::Values) => {
            let of_keys = part == SitePart::Keys;
            let (rows, row, first) = match new {
                NewKeys::None => return None,
                NewKeys::Projected(kv) => (kv, padded(keys + values), if of_keys { 0 } else { keys }),
                NewKeys::Same(both) => (both, padded(keys), 0),
                NewKeys::Apart { keys: rows, .. } if of_keys => (rows, padded(keys), 0),
                NewKeys::Apart { values: rows, .. } => (rows, padded(values), 0),
            };
            let stride = if of_keys { heads.key_stride() } else { heads.value_stride() };
            Some(HeadRows { rows, row, first, heads: kv_heads, stride, ..whole })
        }
        (Place::Attended, SitePart::Outputs) => {
            let (rows, row, stride) = (&workspace.attended, heads.out_row(), heads.value_stride());
            Some(HeadRows { rows, row, slots, heads: each, stride, routes, ..whole })
        }
        _ => None,
    }
}
