//! Edits of a pass: whoever stands at its places and changes what is there.

use std::collections::HashMap;

use crate::{
    gpu::{Buffer, Gpu, Recorder},
    layers::{AttentionSite, Hook, Inside, LayerIndex, Place, Site, SitePart, Sublayer, stored},
    ops::{BlendHeads, EditHeads, EditPlan, EditRoutes},
};

/// The edits of one sublayer.
#[derive(Default)]
pub struct SublayerEdits {
    /// Of the choices of its router.
    pub routes: Option<EditPlan>,
    /// What its heads' outputs are blended with.
    pub blends: Option<EditPlan>,
    /// Of what stands there: of its heads' outputs behind the blends.
    pub parts: Vec<(SitePart, EditPlan)>,
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
        match (site.place, site.inside) {
            (Place::Routes, _) => {
                if let (Some(plan), Some(routes), Some(choice)) =
                    (&edits.routes, site.rows.routes(), site.choice)
                {
                    EditRoutes { plan, applied, spans, routes, choice, tokens }.record(recorder);
                }
            }
            (Place::Attended, Inside::Attention(attention)) => {
                let AttentionSite { heads, spans, cache, routes, .. } = attention;
                if let Some(plan) = &edits.blends {
                    let out = &site.workspace.attended;
                    BlendHeads { plan, applied, heads, spans, routes, cache, out, tokens }.record(recorder);
                }
            }
            _ => {}
        }
        for (part, plan) in &edits.parts {
            if let Some(rows) = stored(site, *part) {
                EditHeads { plan, applied, spans, rows, tokens }.record(recorder);
            }
        }
    }
}
