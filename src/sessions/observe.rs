//! What a session records of its steps: captures become copies of the sublayers that a model has, and come to the host behind the
//! steps.

use super::{
    Choice, Routes, Session,
    capture_plan::{LayerCapture, part_of, resolve},
    readback::{Range as BufferRange, unwatched},
};
use crate::{
    Error, Result,
    error::bytes,
    gpu::{Gpu, Pending},
    layers::{Captured, Captures, LayerIndex, Sublayer, query_bytes},
    models::{BlockSpec, RouterPlace, TransformerSpec},
    ops::{MassOf, Span, head_stride, padded},
    probes::{Keys, Observe, Positions, Recorded, Trace, What},
};

/// What a session records, and what it has recorded.
pub(super) struct Observing {
    observe: Observe,
    pub captures: Captures,
    plan: Vec<Planned>,
    /// Heads and positions that several captures ask for.
    asked: Vec<(Vec<u32>, Positions)>,
    /// What the last step recorded and nobody has read.
    unread: Option<Step>,
    /// What is on its way to the host.
    under_way: Vec<(Pending, Step)>,
    /// Bytes of both, and of what has arrived.
    used: u64,
}

/// A capture of one layer.
struct Planned {
    layer: u32,
    what: What,
    asked: usize,
    /// Values of a head, and floats as they are recorded; those of a pattern are of a step.
    width: u32,
    /// Where it is recorded; routers are read whole.
    site: Option<((LayerIndex, Sublayer), usize)>,
}

/// What a step recorded.
struct Step {
    /// The tokens of each list that is asked for.
    rows: Vec<Vec<[u32; 2]>>,
    /// Which of the step's tokens those are.
    tokens: Vec<Vec<u32>>,
    /// Tokens in all, and slots of a row.
    all: usize,
    row: u32,
}

impl Observing {
    /// Finds what is asked for in a model.
    fn new(session: &Session, observe: &Observe) -> Result<Self> {
        observe.check()?;
        let gpu = session.recorder.gpu();
        let (spec, layout) = (&session.transformer.spec, &session.layout);
        let mut plan = Vec::new();
        let mut asked: Vec<(Vec<u32>, Positions)> = Vec::new();
        for capture in observe.captures() {
            for LayerCapture { layer, heads, width } in resolve(spec, observe, capture)? {
                let own = (heads, capture.positions.clone());
                let list = asked.iter().position(|other| *other == own).unwrap_or_else(|| {
                    asked.push(own);
                    asked.len() - 1
                });
                plan.push(Planned { layer, what: capture.what, asked: list, width, site: None });
            }
        }
        if observe.captures().iter().any(|capture| matches!(capture.what, What::Pattern | What::Rows)) {
            let most = session.transformer.cache_size(layout.sequences, layout.capacity);
            if most.sections(gpu, spec.stack.attentions()).count > 1 {
                let found =
                    format!("rows of {} positions, whose keys take several bindings", layout.capacity);
                return Err(Error::argument("capture", found, "a session of fewer positions"));
            }
        }
        let heads: Vec<&[u32]> = asked.iter().map(|(heads, _)| heads.as_slice()).collect();
        let mut captures = Captures::new(gpu, &heads, layout.step_tokens);
        for planned in &mut plan {
            let block = &spec.stack.blocks[planned.layer as usize];
            let Some((sublayer, what)) = place_of(planned.what, block) else { continue };
            let at = (LayerIndex { encoder: false, layer: planned.layer }, sublayer);
            planned.site = Some((at, captures.add(gpu, at, what, planned.asked, planned.stride(0))));
        }
        gpu.check("allocating captures")?;
        let observe = observe.clone();
        Ok(Self { observe, captures, plan, asked, unread: None, under_way: Vec::new(), used: 0 })
    }

    /// Gets ready for a step of these tokens; refuses one that would pass the budget, before anything is done.
    pub fn begin(&mut self, gpu: &Gpu, spec: &TransformerSpec, spans: &[Span]) -> Result<()> {
        let row = spans.iter().map(|span| span.end).max().unwrap_or(0);
        let of_list = |positions: &Positions| -> Vec<u32> {
            let asked = (0..).zip(spans).filter(|(_, span)| positions.contains(span.position));
            asked.map(|(token, _)| token).collect()
        };
        let tokens: Vec<Vec<u32>> = self.asked.iter().map(|(_, positions)| of_list(positions)).collect();
        let step = Step {
            rows: tokens.iter().map(|own| own.iter().map(|&token| place(spans, token)).collect()).collect(),
            tokens,
            all: spans.len(),
            row,
        };
        let counts = self.counts(&step);
        self.check_budget(&counts, row)?;
        let sizes: Vec<u64> = self.plan.iter().map(|planned| self.bytes_of(planned, &counts, row)).collect();
        sizes.iter().try_for_each(|&bytes| gpu.fits("what one layer records in a step", bytes))?;
        gpu.plan("what a step records", sizes.iter().sum())?;
        let masses =
            |rows: &Vec<[u32; 2]>| self.observe.masses().iter().map(|mass| mass_of(&mass.of, rows)).collect();
        let masses: Vec<Vec<MassOf<'_>>> = step.rows.iter().map(masses).collect();
        let attentions = spec.stack.attentions();
        let queries =
            attentions.map(|attention| query_bytes(&attention.head_layout(), spans.len() as u32)).max();
        self.captures.begin(gpu, &step.tokens, &masses, row, queries.unwrap_or(0));
        gpu.check("allocating captures")?;
        self.used += sizes.iter().sum::<u64>();
        self.unread = Some(step);
        Ok(())
    }

    /// Tokens of each list in a step.
    fn counts(&self, step: &Step) -> Vec<u64> {
        step.tokens.iter().map(|tokens| tokens.len() as u64).collect()
    }

    /// Bytes of a capture on the host, of so many tokens of each list, whose rows have `row` slots.
    fn bytes_of(&self, planned: &Planned, counts: &[u64], row: u32) -> u64 {
        let heads = self.asked[planned.asked].0.len() as u64;
        let tokens = counts[planned.asked];
        4u64.saturating_mul(heads).saturating_mul(tokens).saturating_mul(u64::from(planned.values(row)))
    }

    /// Refuses what would pass the budget, and says what takes most of it.
    fn check_budget(&self, counts: &[u64], row: u32) -> Result<()> {
        let mut by_kind: Vec<(What, u64)> = Vec::new();
        for planned in &self.plan {
            let own = self.bytes_of(planned, counts, row);
            match by_kind.iter_mut().find(|(what, _)| *what == planned.what) {
                Some((_, all)) => *all = all.saturating_add(own),
                None => by_kind.push((planned.what, own)),
            }
        }
        let need = by_kind.iter().fold(self.used, |all, (_, own)| all.saturating_add(*own));
        let budget = self.observe.most_bytes();
        if need <= budget {
            return Ok(());
        }
        // What takes most is what to narrow.
        let most = by_kind.into_iter().max_by_key(|&(_, own)| own);
        let most =
            most.map_or(String::new(), |(what, own)| format!(", of which {} {}", what.name(), bytes(own)));
        let expected =
            format!("at most {}: a larger budget, or fewer layers, heads or positions", bytes(budget));
        Err(Error::argument("bytes to record", format!("{}{most}", bytes(need)), expected))
    }

    /// Forgets what a step that was dropped would have recorded.
    pub fn undo(&mut self) {
        if let Some(step) = self.unread.take() {
            let counts = self.counts(&step);
            self.used -=
                self.plan.iter().map(|planned| self.bytes_of(planned, &counts, step.row)).sum::<u64>();
        }
    }
}

/// The keys of a mass for some rows.
fn mass_of<'a>(keys: &'a Keys, rows: &[[u32; 2]]) -> MassOf<'a> {
    match keys {
        Keys::Behind(slots) => MassOf::Behind(*slots),
        Keys::At(slots) => MassOf::Listed(slots),
        Keys::OfRow(lists) => {
            let own = |&[_, position]: &[u32; 2]| lists.get(position as usize).map_or(&[][..], Vec::as_slice);
            MassOf::OfToken(rows.iter().map(own).collect())
        }
    }
}

/// Where something of a block is recorded; routers are read whole.
fn place_of(what: What, block: &BlockSpec) -> Option<(Sublayer, Captured)> {
    match what {
        What::Pattern => Some((Sublayer::Attention, Captured::Pattern)),
        What::Rows => Some((Sublayer::Attention, Captured::Statistics)),
        _ => part_of(what, block).map(|(sublayer, part)| (sublayer, Captured::Part(part))),
    }
}

/// A token's sequence and position.
fn place(spans: &[Span], token: u32) -> [u32; 2] {
    let span = spans[token as usize];
    [span.sequence, span.position]
}

impl Planned {
    /// Floats that a head takes where it is recorded, in a step whose rows have `row` slots.
    fn stride(&self, row: u32) -> u32 {
        match self.what {
            What::Pattern => row,
            // Columns lie side by side.
            What::Rows => self.width,
            What::Q | What::K | What::V | What::Z => head_stride(self.width),
            _ => padded(self.width),
        }
    }

    /// Values of a head in a trace whose widest step had rows of `row` slots.
    fn values(&self, row: u32) -> u32 {
        if self.what == What::Pattern { row } else { self.width }
    }
}

impl Session {
    /// Records what `observe` says of the steps to come, in place of what was recorded before, or nothing: then steps are as ever,
    /// dispatch for dispatch and bit for bit. What was recorded and not taken is forgotten.
    ///
    /// # Errors
    /// [`Error::Argument`] that names a capture of what the model does not have.
    pub fn set_observe(&mut self, observe: Option<&Observe>) -> Result<()> {
        let observing = observe.map(|observe| Observing::new(self, observe)).transpose()?;
        // What was recorded writes where it wrote.
        self.submit_recorded();
        self.observing = observing;
        Ok(())
    }

    /// Refuses to record so many tokens of each sequence, from its start, where that would pass the budget.
    pub(crate) fn check_observe(&self, tokens: &[u32]) -> Result<()> {
        let Some(observing) = &self.observing else { return Ok(()) };
        let of_list = |positions: &Positions| {
            let own =
                tokens.iter().map(|&end| (0..end).filter(|&position| positions.contains(position)).count());
            own.sum::<usize>() as u64
        };
        let counts: Vec<u64> = observing.asked.iter().map(|(_, positions)| of_list(positions)).collect();
        observing.check_budget(&counts, tokens.iter().copied().max().unwrap_or(0))
    }

    /// What was recorded since it was asked for, or since this was called last. Submits what was recorded on the GPU.
    ///
    /// # Errors
    /// A session that records nothing, and what the GPU reports.
    pub async fn observed(&mut self) -> Result<Trace> {
        self.submit_ahead(unwatched).await?;
        self.read_observed();
        let Some(observing) = &mut self.observing else {
            return Err(Error::argument(
                "session",
                "one that records nothing",
                "one of Session::set_observe",
            ));
        };
        let under_way = std::mem::take(&mut observing.under_way);
        observing.used = 0;
        let mut read = Vec::new();
        for (pending, step) in under_way {
            read.push((pending.wait("recording").await?, step));
        }
        let Some(observing) = &self.observing else { return Ok(Trace::default()) };
        self.trace_of(observing, &read)
    }

    /// Submits what was recorded and starts reading what the last step captured, if nobody did. Steps to come may write over it.
    pub(super) fn read_observed(&mut self) {
        let Self { observing: Some(observing), recorder, workspace, transformer, .. } = self else { return };
        let Some(step) = observing.unread.take() else { return };
        let mut ranges: Vec<BufferRange<'_>> = Vec::new();
        for planned in &observing.plan {
            let recorded = planned.site.and_then(|(at, number)| observing.captures.recorded(at, number));
            ranges.extend(recorded.map(|(buffer, bytes)| (buffer, 0, bytes)));
        }
        if observing.plan.iter().any(|planned| planned.site.is_none()) {
            let stack = &transformer.spec.stack;
            let words = |per_token: u32| 4 * step.all as u64 * u64::from(per_token);
            let routes = words(stack.routes_per_token());
            ranges.push((&workspace.chosen, 0, routes));
            ranges.push((&workspace.gates, 0, routes));
            ranges.push((&workspace.route_scores, 0, words(stack.scores_per_token())));
        }
        let pending = recorder.submit_and_read(&ranges);
        observing.under_way.push((pending, step));
    }

    fn trace_of(&self, observing: &Observing, read: &[(Vec<u8>, Step)]) -> Result<Trace> {
        let stack = &self.transformer.spec.stack;
        let widest = read.iter().map(|(_, step)| step.row).max().unwrap_or(0);
        let mut recorded = Vec::new();
        let mut from: Vec<usize> = vec![0; read.len()];
        for planned in observing.plan.iter().filter(|planned| planned.site.is_some()) {
            let Planned { layer, what, asked, .. } = *planned;
            let width = planned.values(widest) as usize;
            let heads = &observing.asked[asked].0;
            let (mut rows, mut values) = (Vec::new(), Vec::new());
            for ((bytes, step), from) in read.iter().zip(&mut from) {
                let stride = planned.stride(step.row) as usize;
                let count = step.rows[asked].len() * heads.len() * stride;
                let own: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[*from..*from + 4 * count]);
                *from += 4 * count;
                for head in own.chunks_exact(stride.max(1)) {
                    values.extend(&head[..width.min(stride)]);
                    values.resize(values.len() + width.saturating_sub(stride), 0.0);
                }
                rows.extend(&step.rows[asked]);
            }
            let heads = if what.of_layer() { Vec::new() } else { heads.clone() };
            recorded.push(Recorded { name: what.hook(layer), layer, what, rows, heads, width, values });
        }
        if observing.plan.iter().any(|planned| planned.site.is_none()) {
            let mut steps = Vec::new();
            for ((bytes, step), from) in read.iter().zip(&from) {
                steps.push((Routes::new(stack, step.all, &bytes[*from..])?, step));
            }
            for planned in observing.plan.iter().filter(|planned| planned.site.is_none()) {
                recorded.extend(routers(planned, &steps));
            }
        }
        let edits = self.edited.as_ref().map(|edited| edited.edits.clone()).unwrap_or_default();
        Ok(Trace { observe: observing.observe.clone(), edits, recorded })
    }
}

/// What the routers of a layer saw and chose.
fn routers(planned: &Planned, steps: &[(Routes, &Step)]) -> Vec<Recorded> {
    let Some((routes, _)) = steps.first() else { return Vec::new() };
    let mut recorded = Vec::new();
    for (number, place, slots, experts) in routes.routers_of(planned.layer as usize) {
        let name = match place {
            RouterPlace::Attention => "attn.router",
            RouterPlace::Values => "attn.value_router",
            RouterPlace::Cross => "cross_attn.router",
            RouterPlace::Mlp => "mlp.router",
        };
        let (mut rows, mut scores, mut chosen, mut gates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (routes, step) in steps {
            let all: Vec<(Vec<Choice>, &[f32])> = routes.of_router(number).collect();
            for (&token, &row) in step.tokens[planned.asked].iter().zip(&step.rows[planned.asked]) {
                let Some((choices, own)) = all.get(token as usize) else { continue };
                rows.push(row);
                scores.extend_from_slice(own);
                let empty = slots - choices.len().min(slots);
                chosen.extend(choices.iter().map(|choice| choice.expert as f32));
                chosen.resize(chosen.len() + empty, -1.0);
                gates.extend(choices.iter().map(|choice| choice.gate));
                gates.resize(gates.len() + empty, 0.0);
            }
        }
        for (part, width, values) in
            [("scores", experts, scores), ("chosen", slots, chosen), ("gates", slots, gates)]
        {
            recorded.push(Recorded {
                name: format!("blocks.{}.{name}.hook_{part}", planned.layer),
                layer: planned.layer,
                what: What::Router,
                rows: rows.clone(),
                heads: Vec::new(),
                width,
                values,
            });
        }
    }
    recorded
}
