//! A session: sequences with their key/value cache, working one step at a time.

use std::sync::Arc;

use super::{
    SessionOptions,
    edits::SessionEdits,
    observe::Observing,
    options::{Layout, PAGE, SOFTWARE_POSITIONS},
    penalties::Adjusting,
    replay::Replay,
};
use crate::{
    Cancel, Error, Result,
    gpu::{Buffer, Counters, Gpu, Recorder},
    layers::{CacheSize, HeadMixtureSpec, Hook, KvCache, Step, Workspace, angle_bytes},
    models::Transformer,
};

/// Sequences on the GPU that read and write side by side, one step at a time.
///
/// [`forward`](Self::forward) records a step over runs of some of the sequences: ids, or the tokens that were sampled for them.
/// [`sample`](Self::sample) lets the GPU choose what follows. [`tokens`](Self::tokens), [`logits`](Self::logits) and
/// [`routes`](Self::routes) submit what was recorded and read.
///
/// ```
/// use headwise::{Gpu, GpuOptions, Model, Run, Sampling, SessionOptions};
///
/// # fn main() -> headwise::Result<()> {
/// # headwise::block_on(async {
/// let gpu = Gpu::new(GpuOptions::new()).await?;
/// let model = Model::demo(&gpu).await?;
/// let mut session = model.session(SessionOptions::new().sequences(2))?;
///
/// // One sequence reads a prompt and chooses; the other starts while the first goes on.
/// session.forward(&[Run::ids(0, &model.encode("The king shall")?)])?;
/// session.sample(&Sampling::new().seed(1))?;
/// session.forward(&[Run::sampled(0), Run::ids(1, &model.encode("She had never")?)])?;
/// session.sample(&Sampling::new().seed(1))?;
/// let ids = session.tokens().await?.wait().await?;
/// assert_eq!(ids.len(), 2);
///
/// // The second goes on elsewhere, too.
/// let saved = session.save(1).await?;
/// let mut other = model.session(SessionOptions::new())?;
/// other.restore(0, &saved)?;
/// assert_eq!(other.position(0)?, session.position(1)?);
/// # Ok(()) })
/// # }
/// ```
///
/// A call that returns an error leaves the session as it was; so does a step that is cancelled, but for its logits, which are
/// gone. What the GPU itself reports ([`Error::Gpu`], [`Error::DeviceLost`]) ends a session.
pub struct Session {
    pub(super) transformer: Arc<Transformer>,
    /// Which model that is.
    pub(super) model: u64,
    pub(super) recorder: Recorder,
    pub(super) workspace: Workspace,
    pub(super) cache: KvCache,
    pub(super) layout: Layout,
    pub(super) sequences: Vec<Sequence>,
    /// What they were before what is recorded and not submitted.
    before: Vec<Sequence>,
    /// `[sequences]` u32: tokens that were sampled for sequences which sit out while others get theirs
    pub(super) parked: Buffer,
    /// Bytes of everything but the cache.
    fixed_bytes: u64,
    pub(super) last: LastStep,
    /// What changes logits, where anything ever did.
    pub(super) adjusting: Option<Adjusting>,
    /// Who stands in the steps to come.
    pub(super) hook: Option<Box<dyn Hook + Send>>,
    /// What is changed in them.
    pub(super) edited: Option<SessionEdits>,
    /// What is recorded of them.
    pub(super) observing: Option<Observing>,
    /// What tokens are made to choose.
    pub(super) replay: Option<Replay>,
    /// Ends every step.
    pub(super) cancel: Cancel,
}

/// How far a sequence is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sequence {
    /// The next position.
    pub position: u32,
    /// Where the token is that was sampled for it, until it is read.
    pub sampled: Option<Sampled>,
}

/// Where a sampled token is on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampled {
    /// Among the workspace's tokens, which the next sampling writes over.
    Row(u32),
    /// In its sequence's place among those that are kept.
    Parked,
}

/// What the last step computed.
#[derive(Default)]
pub(super) struct LastStep {
    pub step: Step,
    /// One for each row of logits.
    pub rows: Vec<LogitRow>,
    /// Whether tokens were sampled from them.
    pub sampled: bool,
}

/// Whose logits a row holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogitRow {
    pub sequence: u32,
    /// Whether they are of the last token that the sequence has read.
    pub newest: bool,
}

impl Session {
    /// Plans the memory, then allocates it. `model` is a number that tells the transformer's model from others; `cancel` ends
    /// every step.
    ///
    /// # Errors
    /// An option out of range, [`Error::TooLarge`] before anything is allocated, [`Error::Gpu`] when the device refuses.
    pub(crate) fn new(
        gpu: &Gpu,
        transformer: &Arc<Transformer>,
        model: u64,
        cancel: &Cancel,
        options: SessionOptions,
    ) -> Result<Self> {
        let spec = &transformer.spec;
        let layout = options.layout(gpu, spec.context)?;
        let Layout { sequences, capacity, step_tokens, logit_rows, .. } = layout;
        let most = transformer.cache_size(sequences, capacity);
        check_cache(gpu, spec.stack.attentions(), most)?;
        let mut dimensions = spec.dimensions(step_tokens, sequences, capacity, logit_rows);
        dimensions.sections = most.sections(gpu, spec.stack.attentions());
        if layout.hidden {
            dimensions.vocab = 0;
        }
        dimensions.check(gpu)?;
        let size = CacheSize { capacity: layout.first_capacity(), ..most };
        let (attentions, cache_use) = (|| spec.stack.attentions(), spec.stack.cache_use());
        let parked_bytes = 4 * u64::from(sequences);
        let fixed_bytes = dimensions.bytes(gpu) + parked_bytes;
        let need = fixed_bytes + KvCache::all_bytes(attentions(), size, cache_use);
        gpu.plan(&format!("a session of {sequences} × {} positions", size.capacity), need)?;

        let session = Self {
            recorder: Recorder::new(gpu),
            workspace: Workspace::new(gpu, &dimensions),
            cache: KvCache::new(gpu, attentions(), size, cache_use),
            transformer: Arc::clone(transformer),
            model,
            layout,
            sequences: vec![Sequence::default(); sequences as usize],
            before: vec![Sequence::default(); sequences as usize],
            parked: Buffer::new(gpu, "parked", parked_bytes),
            fixed_bytes,
            last: LastStep::default(),
            adjusting: None,
            hook: None,
            edited: None,
            observing: None,
            replay: None,
            cancel: cancel.clone(),
        };
        gpu.check("allocating a session")?;
        Ok(session)
    }

    /// The next position of a sequence: as many tokens as it has read.
    ///
    /// # Errors
    /// A sequence that the session does not have.
    pub fn position(&self, sequence: u32) -> Result<u32> {
        Ok(self.sequence(sequence)?.position)
    }

    /// Bytes of GPU memory that it holds: activations, keys, values and the angles they turn by, which grow with the longest sequence,
    /// what penalties need once there are some, and what is recorded of a step.
    pub fn bytes(&self) -> u64 {
        let stack = &self.transformer.spec.stack;
        let sequences = self.layout.sequences;
        let size = self.transformer.cache_size(sequences, self.cache.capacity());
        let penalties = self.adjusting.as_ref().map_or(0, Adjusting::bytes);
        let captures = self.observing.as_ref().map_or(0, |observing| observing.captures.bytes());
        self.fixed_bytes
            + penalties
            + captures
            + KvCache::all_bytes(stack.attentions(), size, stack.cache_use())
    }

    /// How many sequences it has.
    pub fn sequences(&self) -> u32 {
        self.layout.sequences
    }

    /// Positions that each sequence may have.
    pub fn positions(&self) -> u32 {
        self.layout.capacity
    }

    /// Tokens that one step may have, over all sequences.
    pub fn step_tokens(&self) -> u32 {
        self.layout.step_tokens
    }

    /// Rows of logits that one step may have.
    pub fn logit_rows(&self) -> u32 {
        self.layout.logit_rows
    }

    /// Exact counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.recorder.counters()
    }

    /// Lets someone observe or edit the steps to come, or nobody.
    #[doc(hidden)]
    pub fn set_hook(&mut self, hook: Option<Box<dyn Hook + Send>>) {
        self.hook = hook;
    }

    /// Goes back to an earlier position of a sequence: what it has read from there on is forgotten, and so is the token that
    /// was sampled for it.
    ///
    /// # Errors
    /// A sequence that the session does not have, and a position behind its own.
    pub fn rewind(&mut self, sequence: u32, position: u32) -> Result<()> {
        let now = self.position(sequence)?;
        if position > now {
            return Err(Error::argument("position", position, format!("at most {now}, where it is")));
        }
        self.settle();
        // Later keys stay where they are until new ones take their place; no row sees them.
        self.move_to(sequence, position);
        Ok(())
    }

    /// Lets a sequence stand at a position, whatever it read before.
    pub(super) fn move_to(&mut self, sequence: u32, position: u32) {
        let before = self.before[sequence as usize].position;
        self.before[sequence as usize] = Sequence { position: before.min(position), sampled: None };
        self.sequences[sequence as usize] = Sequence { position, sampled: None };
        for row in self.last.rows.iter_mut().filter(|row| row.sequence == sequence) {
            row.newest = false;
        }
    }

    /// # Errors
    /// A sequence that the session does not have.
    pub(super) fn sequence(&self, sequence: u32) -> Result<&Sequence> {
        self.sequences.get(sequence as usize).ok_or_else(|| {
            Error::argument(
                "sequence",
                sequence,
                format!("below the {} of the session", self.layout.sequences),
            )
        })
    }

    /// Refuses to read hidden states of a session that has logits, or logits of one that has not.
    pub(super) fn check_rows(&self, hidden: bool) -> Result<()> {
        match (self.layout.hidden, hidden) {
            (true, false) => Err(Error::argument("session", "one of hidden states", "one with logits")),
            (false, true) => {
                Err(Error::argument("session", "one with logits", "one of SessionOptions::hidden"))
            }
            _ => Ok(()),
        }
    }

    /// Where a sequence's rows of the last step begin, and how many they are.
    ///
    /// # Errors
    /// A sequence that the session does not have, or that wanted none.
    pub(super) fn rows_of(&self, sequence: u32) -> Result<[u64; 2]> {
        self.sequence(sequence)?;
        let rows = &self.last.rows;
        let before = rows.iter().take_while(|row| row.sequence != sequence).count();
        let count = rows.iter().filter(|row| row.sequence == sequence).count();
        if count == 0 {
            let found = format!("none of sequence {sequence} in the last step");
            return Err(Error::argument("rows of logits", found, "a run that wants some"));
        }
        Ok([before as u64, count as u64])
    }

    /// Submits what was recorded, if anything was.
    pub(super) fn submit_recorded(&mut self) {
        if !self.recorder.is_empty() {
            self.recorder.submit();
        }
        self.settle();
    }

    /// Keeps what was submitted: a step that is cancelled later does not undo it.
    pub(super) fn settle(&mut self) {
        if self.recorder.is_empty() {
            self.before.clone_from(&self.sequences);
        }
    }

    /// Forgets what was recorded and then dropped.
    pub(super) fn undo(&mut self) {
        // Keys that were written are written again before a row sees them.
        self.sequences.clone_from(&self.before);
        self.last = LastStep::default();
        if let Some(observing) = &mut self.observing {
            observing.undo();
        }
    }

    /// Makes room for the first `positions` positions, twice as many as there was room for or more: what has been written is
    /// copied on the GPU after everything recorded so far.
    pub(super) fn reserve(&mut self, positions: u32) -> Result<()> {
        let now = self.cache.capacity();
        if positions <= now {
            return Ok(());
        }
        let capacity = positions.max(now.saturating_mul(2)).next_multiple_of(PAGE).min(self.layout.capacity);
        let attentions = || self.transformer.spec.stack.attentions();
        let need = self.cache.bytes_to_grow(attentions(), capacity);
        let gpu = self.recorder.gpu();
        gpu.plan(&format!("growing the cache from {now} to {capacity} positions"), need)?;
        self.cache.grow(&mut self.recorder, attentions(), capacity);
        self.recorder.gpu().check("growing the cache")
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let positions: Vec<u32> = self.sequences.iter().map(|sequence| sequence.position).collect();
        f.debug_struct("Session")
            .field("layout", &self.layout)
            .field("at", &positions)
            .finish_non_exhaustive()
    }
}

/// Refuses a key/value cache that the device cannot bind, or whose attention a software adapter cannot compute.
pub(crate) fn check_cache<'a>(
    gpu: &Gpu,
    attentions: impl Iterator<Item = &'a HeadMixtureSpec>,
    size: CacheSize,
) -> Result<()> {
    let capacity = size.capacity;
    if gpu.capabilities().software && capacity > SOFTWARE_POSITIONS {
        let expected = format!("at most {SOFTWARE_POSITIONS} on a software adapter");
        return Err(Error::argument("context", capacity, expected));
    }
    for spec in attentions {
        let layout = size.layout(spec);
        let what = format!("the keys and values of one head for {} positions", layout.least_slots());
        gpu.fits(&what, layout.least_window_bytes())?;
        gpu.fits(&format!("the angles of {capacity} positions"), angle_bytes(spec, capacity))?;
    }
    Ok(())
}
