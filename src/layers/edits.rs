//! Edits of a pass: whoever stands at its places and changes what is there.

use std::collections::HashMap;

use crate::{
    gpu::{Buffer, Gpu, Recorder},
    layers::{Hook, Inside, LayerIndex, Place, Site, Sublayer},
    ops::{EditHeads, EditPlan, EditRoutes, padded},
};

/// The edits of one sublayer.
#[derive(Default)]
pub struct SublayerEdits {
    /// Of the choices of its router.
    pub routes: Option<EditPlan>,
    /// Of its heads' outputs, or of the inside of its MLP experts.
    pub heads: Option<EditPlan>,
}

/// The edits of a model's sublayers.
pub struct Edited {
    sublayers: HashMap<(LayerIndex, Sublayer), SublayerEdits>,
    /// `[edits]` u32: how often each has changed something
    pub applied: Buffer,
}

impl Edited {
    /// So many edits, by sublayer; those of a sublayer that is not there cost nothing.
    pub fn new(gpu: &Gpu, edits: u32, sublayers: HashMap<(LayerIndex, Sublayer), SublayerEdits>) -> Self {
        Self { sublayers, applied: Buffer::new(gpu, "edits.applied", 4 * u64::from(edits.max(1))) }
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
                if let (Some(plan), Inside::Attention(attention)) = (&edits.heads, site.inside) {
                    let layout = attention.heads;
                    // Experts that share a query share what it attends to.
                    let own = site.rows.assignments() == tokens * layout.slots;
                    EditHeads {
                        plan,
                        applied,
                        spans,
                        routes: site.rows.routes().filter(|_| own),
                        rows: &site.workspace.attended,
                        tokens,
                        slots: layout.slots,
                        heads: layout.heads,
                        stride: layout.value_stride(),
                    }
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
