//! Edits of a pass: whoever stands at its places and changes what is there.

use std::collections::HashMap;

use crate::{
    gpu::{Buffer, Gpu, Recorder},
    layers::{AttentionSite, Hook, Inside, LayerIndex, Place, Site, Sublayer},
    ops::{BlendHeads, EditHeads, EditPlan, EditRoutes, HeadLayout, padded},
};

/// The edits of one sublayer.
#[derive(Default)]
pub struct SublayerEdits {
    /// Of the choices of its router.
    pub routes: Option<EditPlan>,
    /// What its heads' outputs are blended with.
    pub blends: Option<EditPlan>,
    /// Of its heads' outputs, blended or not, or of the inside of its MLP experts.
    pub heads: Option<EditPlan>,
}

/// The edits of a model's sublayers.
pub struct Edited {
    sublayers: HashMap<(LayerIndex, Sublayer), SublayerEdits>,
    pub edits: u32,
    /// `[edits]` u32: how often each has changed something
    pub applied: Buffer,
}

impl Edited {
    /// So many edits, by sublayer; those of a sublayer that is not there cost nothing.
    pub fn new(gpu: &Gpu, edits: u32, sublayers: HashMap<(LayerIndex, Sublayer), SublayerEdits>) -> Self {
        Self { sublayers, edits, applied: Buffer::new(gpu, "edits.applied", 4 * u64::from(edits)) }
    }
}

impl Hook for Edited {
    fn reach(&mut self, recorder: &mut Recorder, site: &Site<'_>) {
        let Some(edits) = self.sublayers.get(&(site.layer, site.sublayer)) else { return };
        let (applied, spans, tokens) = (&self.applied, &site.workspace.spans, site.step.tokens);
        match site.place {
            Place::Routes => {
                if let (Some(plan), Some(routes), Some(choice)) =
                    (&edits.routes, site.rows.routes(), site.choice)
                {
                    EditRoutes { plan, applied, spans, routes, choice, tokens }.record(recorder);
                }
            }
            Place::Attended => {
                let Inside::Attention(AttentionSite { heads, spans: seen, cache, routes, .. }) = site.inside
                else {
                    return;
                };
                let rows = &site.workspace.attended;
                if let Some(plan) = &edits.blends {
                    BlendHeads { plan, applied, heads, spans: seen, routes, cache, out: rows, tokens }
                        .record(recorder);
                }
                if let Some(plan) = &edits.heads {
                    let HeadLayout { slots, heads: each, .. } = heads;
                    let stride = heads.value_stride();
                    EditHeads { plan, applied, spans, routes, rows, tokens, slots, heads: each, stride }
                        .record(recorder);
                }
            }
            Place::Hidden => {
                if let (Some(plan), Inside::Mlp { hidden }) = (&edits.heads, site.inside) {
                    EditHeads {
                        plan,
                        applied,
                        spans,
                        routes: site.rows.routes(),
                        rows: &site.workspace.hidden,
                        tokens,
                        slots: site.rows.assignments() / tokens.max(1),
                        heads: 1,
                        stride: padded(hidden),
                    }
                    .record(recorder);
                }
            }
            Place::Queries | Place::Output => {}
        }
    }
}
