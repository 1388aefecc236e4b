//! Edits of a session: addresses become records of the sublayers that a model has.

use std::{collections::HashMap, ops::Range};

use super::Session;
use crate::{
    Error, Result,
    gpu::Gpu,
    layers::{Edited, LayerIndex, RouterSpec, Scope, Sublayer, SublayerEdits},
    models::{BlockSpec, TransformerSpec},
    ops::{EditKind, EditPlan, EditPositions, PlannedEdit},
    probes::{Change, Edit, Edits, Positions, Stack, Unit},
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
    heads: Vec<PlannedEdit>,
}

impl Records {
    /// Edits of the head or expert that has most.
    fn most_of_one(&self) -> usize {
        let most = |records: &Vec<PlannedEdit>| {
            let mut counts = HashMap::new();
            records.iter().for_each(|record| *counts.entry(record.unit).or_insert(0) += 1);
            counts.into_values().max().unwrap_or(0)
        };
        [&self.routes, &self.blends, &self.heads].map(most).into_iter().max().unwrap_or(0)
    }
}

/// Which sublayer.
type Where = (LayerIndex, Sublayer);

/// The records of a plan, sublayer by sublayer.
pub(crate) struct Resolved {
    sublayers: HashMap<Where, (Records, Units)>,
    edits: u32,
}

/// What a sublayer has.
#[derive(Clone, Copy)]
struct Units {
    experts: u32,
    heads: u32,
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
            match sublayer(&stack.blocks[layer as usize], edit) {
                Ok((sublayer, units, own)) => {
                    let place = (LayerIndex { encoder, layer }, sublayer);
                    let (to, _) = self.sublayers.entry(place).or_insert_with(|| (Records::default(), units));
                    records += own.len();
                    let to = match edit.change {
                        Change::Scale(_) => &mut to.heads,
                        // A blend of nothing is none.
                        Change::Identity(part) | Change::Uniform(part) if part == 0.0 => continue,
                        Change::Identity(_) | Change::Uniform(_) => &mut to.blends,
                        Change::Off | Change::Masked | Change::Forced | Change::Bias(_) => &mut to.routes,
                    };
                    to.extend(own.map(|unit| planned(edit, unit, number)));
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
            let heads = [&records.blends, &records.heads].map(|records| (units.heads, records));
            let sizes = [(units.experts, &records.routes), heads[0], heads[1]];
            sizes.map(|(units, records)| EditPlan::bytes(units, records))
        });
        let sizes: Vec<u64> = sizes.collect();
        sizes.iter().try_for_each(|&bytes| gpu.fits("the edits of a layer", bytes))?;
        gpu.plan("the edits of a session", sizes.iter().sum())?;
        let plan = |units, records: &[PlannedEdit]| {
            (!records.is_empty()).then(|| EditPlan::new(gpu, units, records))
        };
        let sublayers = self.sublayers.into_iter().map(|(place, (records, units))| {
            let routes = plan(units.experts, &records.routes);
            let [blends, heads] = [&records.blends, &records.heads].map(|records| plan(units.heads, records));
            (place, SublayerEdits { routes, blends, heads })
        });
        let edited = Edited::new(gpu, self.edits, sublayers.collect());
        gpu.check("allocating edits")?;
        Ok(Some(edited))
    }
}

/// What was found, and what was expected.
type Refusal = (String, String);

/// Which sublayer of a block an edit names, and what of it.
fn sublayer(block: &BlockSpec, edit: &Edit) -> Result<(Sublayer, Units, Range<u32>), Refusal> {
    let of_mlp = edit.at.unit == Unit::MlpExpert;
    let (sublayer, attention) = match (edit.at.stack, &block.cross) {
        (Stack::Cross, _) if of_mlp => {
            return Err((
                "an MLP".to_owned(),
                "heads (H) or head experts (A), to attend to a source".to_owned(),
            ));
        }
        (Stack::Cross, Some(_)) if matches!(edit.change, Change::Identity(_)) => {
            return Err((
                "heads that do not see their own token".to_owned(),
                "uniform, or others' heads".to_owned(),
            ));
        }
        (Stack::Cross, Some(cross)) => (Sublayer::Cross, cross),
        (Stack::Cross, None) => {
            return Err(("an attention to a source".to_owned(), "a model that translates".to_owned()));
        }
        (Stack::Main | Stack::Encoder, _) => (Sublayer::Attention, &block.attention),
    };
    if of_mlp {
        let Some(mlp) = &block.mlp else {
            return Err((
                "MLP experts of a layer without an MLP".to_owned(),
                "heads (H) or head experts (A)".to_owned(),
            ));
        };
        let router = &mlp.router;
        let units = Units { experts: router.experts(), heads: router.experts() };
        let experts = routed(router, "the MLP", edit)?;
        return Ok((Sublayer::Mlp, units, experts));
    }
    let heads = attention.query_heads();
    let units = Units { experts: attention.router.experts(), heads };
    let own = match edit.at.unit {
        Unit::Head => numbered(edit, heads, "heads")?,
        _ => {
            let experts = routed(&attention.router, "the attention", edit)?;
            match edit.change.of_router() {
                true => experts,
                false if attention.query_share > 1 => {
                    let found = "a change of the heads of experts that share them".to_owned();
                    return Err((found, "off, masked, forced or bias of them, or heads (H)".to_owned()));
                }
                false => {
                    let each = attention.heads_per_expert;
                    experts.start * each..experts.end * each
                }
            }
        }
    };
    Ok((sublayer, units, own))
}

/// The experts that an edit names.
fn routed(router: &RouterSpec, of: &str, edit: &Edit) -> Result<Range<u32>, Refusal> {
    if !router.routes() {
        return Err((
            format!("experts of {of}, which is not routed"),
            "a routed layer, or heads (H)".to_owned(),
        ));
    }
    if edit.change.of_router() && router.scope != Scope::Token {
        let expected = "scale, as heads choose from whole sequences".to_owned();
        return Err((format!("a choice of {of}"), expected));
    }
    let experts = numbered(edit, router.experts(), "experts")?;
    if matches!(edit.change, Change::Masked | Change::Forced | Change::Bias(_)) {
        let shared = router.choice.shared;
        if edit.at.index.is_some_and(|index| index < shared) {
            let expected = format!("one from {shared} on: those before it are shared by all tokens");
            return Err((format!("expert {}", experts.start), expected));
        }
        return Ok(experts.start.max(shared)..experts.end);
    }
    Ok(experts)
}

/// The number that an edit names, or all.
fn numbered(edit: &Edit, count: u32, what: &str) -> Result<Range<u32>, Refusal> {
    match edit.at.index {
        None => Ok(0..count),
        Some(index) if index < count => Ok(index..index + 1),
        Some(index) => {
            Err((format!("{} {index}", edit.at.unit.name()), format!("one below its {count} {what}")))
        }
    }
}

fn planned(edit: &Edit, unit: u32, number: u32) -> PlannedEdit {
    let (kind, value) = match edit.change {
        Change::Scale(scale) => (EditKind::Scale, scale),
        Change::Identity(part) => (EditKind::Identity, part),
        Change::Uniform(part) => (EditKind::Uniform, part),
        Change::Off => (EditKind::Off, 0.0),
        Change::Masked => (EditKind::Masked, 0.0),
        Change::Forced => (EditKind::Forced, 0.0),
        Change::Bias(bias) => (EditKind::Bias, bias),
    };
    let positions = match &edit.positions {
        Positions::All => EditPositions::All,
        Positions::Range(first, end) => EditPositions::Range(*first, *end),
        Positions::List(list) => EditPositions::List(list.clone()),
    };
    PlannedEdit { unit, kind, value, positions, number }
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
