//! Edits of a session: addresses become records of the sublayers that a model has.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Session,
    meant::{Meant, Units, meant},
};
use crate::{
    Error, Result,
    gpu::Gpu,
    layers::{Edited, LayerIndex, SitePart, Sublayer, SublayerEdits},
    models::TransformerSpec,
    ops::{EditKind, EditPlan, EditPositions, PlannedEdit},
    probes::{Change, Edit, Edits, Positions, Stack},
};

/// Heads and experts that the edits of a session name at the most, one counted for each edit of it.
const MOST_RECORDS: usize = 1 << 22;

/// Edits of one head or expert at the most: an invocation goes through all of them.
const MOST_OF_ONE: usize = 256;

/// What is changed in a session's steps.
pub(super) struct SessionEdits {
    /// As they were given.
    pub edits: Edits,
    pub hook: Edited,
}

/// The records of one sublayer.
#[derive(Default)]
struct Records {
    routes: Vec<PlannedEdit>,
    blends: Vec<PlannedEdit>,
    parts: BTreeMap<SitePart, Vec<PlannedEdit>>,
}

impl Records {
    /// Edits of the head or expert that has most.
    fn most_of_one(&self) -> usize {
        let most = |records: &Vec<PlannedEdit>| {
            let mut counts = HashMap::new();
            records.iter().for_each(|record| *counts.entry(record.unit).or_insert(0) += 1);
            counts.into_values().max().unwrap_or(0)
        };
        [&self.routes, &self.blends].into_iter().chain(self.parts.values()).map(most).max().unwrap_or(0)
    }
}

/// Which sublayer.
type Where = (LayerIndex, Sublayer);

/// The records of a plan, sublayer by sublayer.
pub(crate) struct Resolved {
    sublayers: HashMap<Where, (Records, Units)>,
    edits: u32,
}

impl Resolved {
    /// Finds what the edits name in a model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first edit of something that the model does not have, and why.
    pub fn new(spec: &TransformerSpec, edits: &Edits) -> Result<Self> {
        edits.check()?;
        let mut resolved = Self { sublayers: HashMap::new(), edits: edits.len() as u32 };
        let mut records = 0;
        for (number, edit) in (0..).zip(edits) {
            records += resolved.add(spec, edit, number)?;
            if records > MOST_RECORDS {
                let found = format!("more than {MOST_RECORDS}");
                return Err(Error::argument("edits", found, "fewer heads and experts in all"));
            }
        }
        let most = resolved.sublayers.values().map(|(records, _)| records.most_of_one()).max();
        match most.filter(|&most| most > MOST_OF_ONE) {
            Some(most) => {
                let found = format!("{most} of one head or expert");
                Err(Error::argument("edits", found, format!("at most {MOST_OF_ONE}")))
            }
            None => Ok(resolved),
        }
    }

    /// Adds the records of an edit, and counts them.
    fn add(&mut self, spec: &TransformerSpec, edit: &Edit, number: u32) -> Result<usize> {
        let refused =
            |found: String, expected: String| Error::argument("edit", format!("{found} in {edit}"), expected);
        let encoder = edit.at.stack == Stack::Encoder;
        let stack = match (encoder, &spec.encoder) {
            (false, _) => &spec.stack,
            (true, Some(stack)) => stack,
            (true, None) => {
                return Err(refused("an encoder".to_owned(), "a layer of the one stack".to_owned()));
            }
        };
        let count = stack.blocks.len() as u32;
        let layers = match edit.at.layer {
            Some(layer) if layer >= count => {
                return Err(refused(format!("layer {layer}"), format!("one below the {count} of the model")));
            }
            Some(layer) => layer..layer + 1,
            None => 0..count,
        };
        let (mut records, mut why) = (0, None);
        for layer in layers {
            match meant(&stack.blocks[layer as usize], edit) {
                Ok(Meant { sublayer, part, units, own, width }) => {
                    if let Some(found) = wrong_length(&edit.change, width) {
                        return Err(refused(found, format!("{width}, the channels of layer {layer}'s")));
                    }
                    let place = (LayerIndex { encoder, layer }, sublayer);
                    let (to, _) = self.sublayers.entry(place).or_insert_with(|| (Records::default(), units));
                    records += own.len();
                    let to = match edit.change {
                        Change::Scale(_) | Change::Mix { .. } | Change::Add { .. } => {
                            to.parts.entry(part).or_default()
                        }
                        // A blend of nothing is none.
                        Change::Identity(part) | Change::Uniform(part) | Change::Row { part, .. }
                            if part == 0.0 =>
                        {
                            continue;
                        }
                        Change::Identity(_) | Change::Uniform(_) | Change::Row { .. } => &mut to.blends,
                        Change::Off | Change::Masked | Change::Forced | Change::Bias(_) => &mut to.routes,
                    };
                    let vectors: Arc<[Vec<f32>]> = vectors_of(&edit.change).into();
                    to.extend(own.map(|unit| planned(edit, unit, number, &vectors)));
                }
                Err((found, expected)) => {
                    why.get_or_insert_with(|| refused(format!("{found} of layer {layer}"), expected));
                }
            }
        }
        // Of all layers those are meant that have it.
        match why.filter(|_| records == 0) {
            Some(why) => Err(why),
            None => Ok(records),
        }
    }

    /// On a GPU; nothing where there are no edits, for each has a sublayer.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where there is no room, and what the GPU reports.
    pub fn upload(self, gpu: &Gpu) -> Result<Option<Edited>> {
        if self.sublayers.is_empty() {
            return Ok(None);
        }
        let sizes = self.sublayers.values().flat_map(|(records, units)| {
            let first = [(units.experts, &records.routes), (units.heads, &records.blends)].into_iter();
            let parts = records.parts.iter().map(|(part, records)| (units.of(*part), records));
            first.chain(parts).map(|(units, records)| EditPlan::bytes(units, records))
        });
        let sizes: Vec<[u64; 2]> = sizes.collect();
        sizes.iter().try_for_each(|&[largest, _]| gpu.fits("the edits of a layer", largest))?;
        gpu.plan("the edits of a session", sizes.iter().map(|[_, all]| all).sum())?;
        let plan = |units, records: &[PlannedEdit]| {
            (!records.is_empty()).then(|| EditPlan::new(gpu, units, records))
        };
        let sublayers = self.sublayers.into_iter().map(|(place, (records, units))| {
            let routes = plan(units.experts, &records.routes);
            let blends = plan(units.heads, &records.blends);
            let parts = records.parts.iter();
            let parts = parts.map(|(part, records)| (*part, EditPlan::new(gpu, units.of(*part), records)));
            (place, SublayerEdits { routes, blends, parts: parts.collect() })
        });
        let edited = Edited::new(gpu, self.edits, sublayers.collect());
        gpu.check("allocating edits")?;
        Ok(Some(edited))
    }
}

/// The vectors of a change.
fn vectors_of(change: &Change) -> &[Vec<f32>] {
    match change {
        Change::Mix { with: vectors, .. } | Change::Add { vector: vectors, .. } => vectors.rows(),
        _ => &[],
    }
}

/// How long a change's vectors are, where that is not as long as what it changes.
fn wrong_length(change: &Change, width: u32) -> Option<String> {
    let length = vectors_of(change).first()?.len();
    (length != width as usize).then(|| format!("a vector of {length} numbers"))
}

fn planned(edit: &Edit, unit: u32, number: u32, vectors: &Arc<[Vec<f32>]>) -> PlannedEdit {
    let (kind, value) = match edit.change {
        Change::Scale(scale) => (EditKind::Scale, scale),
        Change::Identity(part) => (EditKind::Identity, part),
        Change::Uniform(part) => (EditKind::Uniform, part),
        Change::Row { part, .. } => (EditKind::Row, part),
        Change::Off => (EditKind::Off, 0.0),
        Change::Masked => (EditKind::Masked, 0.0),
        Change::Forced => (EditKind::Forced, 0.0),
        Change::Bias(bias) => (EditKind::Bias, bias),
        Change::Mix { part, .. } => (EditKind::Mix, part),
        Change::Add { scale, .. } => (EditKind::Add, scale),
    };
    let positions = match &edit.positions {
        Positions::All => EditPositions::All,
        Positions::Range(first, end) => EditPositions::Range(*first, *end),
        Positions::List(list) => EditPositions::List(list.clone()),
    };
    let row = match &edit.change {
        Change::Row { on, .. } => on.as_slice().into(),
        _ => [].into(),
    };
    PlannedEdit { unit, kind, value, positions, number, vectors: Arc::clone(vectors), row }
}

impl Session {
    /// Changes the steps to come as `edits` say, in place of those before; no edits, no change, no work.
    ///
    /// Edits stand in the order of their formulas: those of a router's choice, then those of what its experts, or heads, put out.
    /// Positions are those of tokens in their sequences. Keys and values that the cache has stay as they are, and so do those that
    /// [`restore`](Self::restore) brings: edits are the session's, a saved sequence has none.
    ///
    /// # Errors
    /// [`Error::Argument`] that names an edit of what the model does not have, and [`Error::TooLarge`].
    pub fn set_edits(&mut self, edits: &Edits) -> Result<()> {
        let resolved = Resolved::new(&self.transformer.spec, edits)?;
        // What was recorded reads the plan that was.
        self.submit_recorded();
        let hook = resolved.upload(self.recorder.gpu())?;
        self.edited = hook.map(|hook| SessionEdits { edits: edits.clone(), hook });
        Ok(())
    }

    /// How often each of the edits has changed something since they were set, one for each in their order: `scale` counts heads, or
    /// experts, of a token; `off` and `masked` tokens that would have used the expert; `forced` tokens that would not; `bias`
    /// tokens. 0 says that an edit did nothing. Submits what was recorded.
    ///
    /// # Errors
    /// What the GPU reports.
    pub async fn edits_applied(&mut self) -> Result<Vec<u32>> {
        let Some(SessionEdits { hook, .. }) = &self.edited else { return Ok(Vec::new()) };
        let range = (&hook.applied, 0, 4 * u64::from(hook.edits));
        let read = self.recorder.submit_and_read(&[range]).wait("counting edits").await?;
        Ok(bytemuck::pod_collect_to_vec(&read))
    }
}
