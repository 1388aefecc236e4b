//! Translation: texts in, texts out, greedily or by beam search.

use super::{Logits, Model, StopReason, fill::packed};
use crate::{
    Cancel, Error, Result,
    models::Task,
    ops::MAX_TOP_LOGITS,
    sessions::{Row, TargetLayout, TokenRoutes, TranslationSession, check_ids},
};

/// How to translate.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Translate {
    beams: usize,
    length_penalty: f64,
    max_new: usize,
    batch: usize,
    routes: bool,
    #[serde(skip)]
    cancel: Cancel,
}

impl Default for Translate {
    /// Greedy, at most 96 tokens, 16 texts at once; length penalty 0.6 when there are beams.
    fn default() -> Self {
        Self {
            beams: 1,
            length_penalty: 0.6,
            max_new: 96,
            batch: 16,
            routes: false,
            cancel: Cancel::default(),
        }
    }
}

impl Translate {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hypotheses that grow side by side; 1 is greedy. MoA's paper takes 4.
    pub fn beams(mut self, beams: usize) -> Self {
        self.beams = beams;
        self
    }

    /// The exponent `a` of the length penalty: a finished translation of `n` tokens, its end counted, scores
    /// `Σ log p / ((5 + n) / 6)^a` (Wu et al. 2016, arXiv 1609.08144).
    pub fn length_penalty(mut self, exponent: f64) -> Self {
        self.length_penalty = exponent;
        self
    }

    /// Tokens of a translation at the most.
    pub fn max_new(mut self, tokens: usize) -> Self {
        self.max_new = tokens;
        self
    }

    /// Texts worked on at once.
    pub fn batch(mut self, texts: usize) -> Self {
        self.batch = texts;
        self
    }

    /// Reads back which experts each token chose.
    pub fn with_routes(mut self) -> Self {
        self.routes = true;
        self
    }

    /// Lets another thread or handler stop the translation.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    fn check(&self) -> Result<()> {
        let most = MAX_TOP_LOGITS as usize / 2;
        if !(1..=most).contains(&self.beams) {
            return Err(Error::argument("beams", self.beams, format!("1 to {most}")));
        }
        if !self.length_penalty.is_finite() {
            return Err(Error::argument("length penalty", self.length_penalty, "a number"));
        }
        for (name, value) in [("max new tokens", self.max_new), ("batch", self.batch)] {
            if value == 0 {
                return Err(Error::argument(name, 0, "at least 1"));
            }
        }
        Ok(())
    }
}

/// A translated text.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Translation {
    /// The ids of the translation, its end token last unless it was cut off.
    pub ids: Vec<u32>,
    /// Its text; empty when translating ids.
    pub text: String,
    /// Its score: the sum of log-probabilities, divided by the length penalty.
    pub score: f64,
    /// The ids of the source, its end token last.
    pub source_ids: Vec<u32>,
    /// The experts that each token of the source chose, with [`Translate::with_routes`].
    pub source_routes: Vec<TokenRoutes>,
    /// The experts chosen on the way to each id of the translation, with [`Translate::with_routes`].
    pub routes: Vec<TokenRoutes>,
    /// Why it ended.
    pub stopped: StopReason,
}

impl Translation {
    /// Of a text that was not read.
    fn nothing(source: &[u32]) -> Self {
        Self {
            ids: Vec::new(),
            text: String::new(),
            score: 0.0,
            source_ids: source.to_vec(),
            source_routes: Vec::new(),
            routes: Vec::new(),
            stopped: StopReason::Cancelled,
        }
    }
}

impl Model {
    /// Translates texts. `progress` is told how many are done, and of how many. Where [`Cancel`] ends it, texts are translated as far
    /// as it came; those of like length side by side, so not those that were given first.
    ///
    /// # Errors
    /// A model that does not translate, a text longer than the model's context, options out of range, and what the GPU
    /// reports.
    #[cfg(feature = "tokenizer")]
    pub async fn translate(
        &self,
        texts: &[&str],
        options: &Translate,
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Translation>> {
        let Task::Translate { start, end } = self.task else { return Err(self.wrong_task("translate")) };
        let tokenizer = self.tokenizer()?;
        let encode = |text: &&str| self.encode_ending(text, end);
        let sources: Vec<Vec<u32>> = texts.iter().map(encode).collect::<Result<_>>()?;
        let sources: Vec<&[u32]> = sources.iter().map(Vec::as_slice).collect();
        let mut translations = self.translate_ids(&sources, options, progress).await?;
        for translation in &mut translations {
            let plain: Vec<u32> =
                translation.ids.iter().copied().filter(|id| *id != start && *id != end).collect();
            translation.text = tokenizer.decode(&plain)?;
        }
        Ok(translations)
    }

    /// Translates token sequences, which end as the model wants them to.
    ///
    /// # Errors
    /// As [`Model::translate`], and an id outside the vocabulary.
    pub async fn translate_ids(
        &self,
        sources: &[&[u32]],
        options: &Translate,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Translation>> {
        let Task::Translate { .. } = self.task else { return Err(self.wrong_task("translate")) };
        options.check()?;
        self.check_prompts(sources)?;
        let vocab = self.info().vocab;
        sources.iter().try_for_each(|ids| check_ids(ids, vocab))?;
        // Texts of like length run together, so that few rows are left over at the end of a batch.
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|&index| sources[index].len());
        let sorted: Vec<&[u32]> = order.iter().map(|&index| sources[index]).collect();
        let cancel = Cancel::below([&self.cancel, &options.cancel]);
        let mut results: Vec<Translation> = sources.iter().map(|ids| Translation::nothing(ids)).collect();
        let mut done = 0;
        progress(done, sources.len());
        let batches = packed(&sorted, SOURCE_TOKENS);
        for batch in batches.iter().flat_map(|batch| batch.chunks(options.batch)) {
            let translated = match self.translate_batch(batch, options, &cancel).await {
                Err(Error::Cancelled) => break,
                translated => translated?,
            };
            for (&index, translation) in order[done..].iter().zip(translated) {
                results[index] = translation;
            }
            done += batch.len();
            if cancel.is_cancelled() {
                break;
            }
            progress(done, sources.len());
        }
        Ok(results)
    }

    /// Translates sources side by side; as far as it came, where it is cancelled after they were read.
    async fn translate_batch(
        &self,
        sources: &[&[u32]],
        options: &Translate,
        cancel: &Cancel,
    ) -> Result<Vec<Translation>> {
        let (Task::Translate { start, end }, Some(encoder)) = (&self.task, &self.transformer.spec.encoder)
        else {
            return Err(self.wrong_task("translate"));
        };
        let info = self.info();
        let (context, beams) = (info.context as usize, options.beams as u32);
        let capacity = context.min(options.max_new) as u32;
        let layout = TargetLayout { beams, capacity, step_tokens: 1, with_routes: options.routes };
        let (gpu, transformer) = (&self.gpu, &self.transformer);
        let (mut session, read) =
            TranslationSession::read(gpu, transformer, encoder, sources, layout, (&self.edits, cancel))
                .await?;
        let search = |source| Search::new(source, *start, *end, options);
        let mut searches: Vec<Search> = (0..).map(search).take(sources.len()).collect();
        // What ends those that come to no end by themselves.
        let mut cut = if options.max_new <= context { StopReason::MaxNew } else { StopReason::Context };
        for _ in 0..capacity {
            let rows: Vec<Row> = searches.iter().flat_map(Search::rows).collect();
            if rows.is_empty() {
                break;
            }
            // Greedy search looks at the best token alone.
            let n = if beams == 1 { 1 } else { 2 * beams };
            let found = match session.step(&rows, n.min(info.vocab)).await {
                Err(Error::Cancelled) => {
                    cut = StopReason::Cancelled;
                    break;
                }
                found => found?,
            };
            let mut parents: Vec<u32> = (0..sources.len() as u32 * beams).collect();
            let mut row = 0;
            for search in &mut searches {
                let live = search.live.len();
                let routes = found.routes.iter().flat_map(|all| (row..row + live).map(|row| all.token(row)));
                search.advance(&found.top[row..row + live], &routes.collect::<Vec<_>>(), &mut parents);
                row += live;
            }
            session.reorder(&parents);
        }
        tracing::debug!(counters = ?session.counters(), "translated a batch");
        let mut token = 0;
        let translated = sources.iter().zip(searches).map(|(source, search)| {
            let tokens = token..token + source.len();
            token += source.len();
            let routes = read.iter().flat_map(|all| tokens.clone().map(|token| all.token(token)));
            search.finish(source, routes.collect(), cut)
        });
        Ok(translated.collect())
    }

    /// Logits and routes of a target that is given, `target` starting with the model's start token.
    ///
    /// # Errors
    /// A model that does not translate, sequences that are empty, too long or hold an id outside the vocabulary,
    /// [`Error::Cancelled`], and what the GPU reports.
    pub async fn translation_logits(&self, source: &[u32], target: &[u32]) -> Result<TranslationLogits> {
        let (Task::Translate { .. }, Some(encoder)) = (&self.task, &self.transformer.spec.encoder) else {
            return Err(self.wrong_task("translate"));
        };
        self.check_prompts(&[source, target])?;
        let vocab = self.info().vocab;
        [source, target].into_iter().try_for_each(|ids| check_ids(ids, vocab))?;
        let capacity = target.len() as u32;
        let layout = TargetLayout { beams: 1, capacity, step_tokens: capacity, with_routes: true };
        let (gpu, transformer) = (&self.gpu, &self.transformer);
        let (mut session, read) = TranslationSession::read(
            gpu,
            transformer,
            encoder,
            &[source],
            layout,
            (&self.edits, &self.cancel),
        )
        .await?;
        let (values, routes) = session.follow(target).await?;
        let routes = (0..target.len()).map(|token| routes.token(token)).collect();
        Ok(TranslationLogits {
            target: Logits { vocab: vocab as usize, values, routes },
            source_routes: read
                .iter()
                .flat_map(|all| (0..source.len()).map(|token| all.token(token)))
                .collect(),
        })
    }
}

/// A source and what follows when its target is given.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct TranslationLogits {
    /// Of each token of the target: what may follow it, and the experts it chose.
    pub target: Logits,
    /// The experts that each token of the source chose.
    pub source_routes: Vec<TokenRoutes>,
}

/// Tokens of the sources of one batch.
const SOURCE_TOKENS: usize = 2048;

/// The search for one text's translation.
struct Search {
    source: u32,
    start: u32,
    end: u32,
    beams: usize,
    length_penalty: f64,
    /// Hypotheses that grow, the best first.
    live: Vec<Hypothesis>,
    finished: Vec<Hypothesis>,
}

/// The beginning of a translation, or a whole one.
#[derive(Clone, Default)]
struct Hypothesis {
    ids: Vec<u32>,
    /// Σ log p; of a finished one divided by the length penalty.
    score: f64,
    routes: Vec<TokenRoutes>,
}

impl Search {
    fn new(source: u32, start: u32, end: u32, options: &Translate) -> Self {
        let Translate { beams, length_penalty, .. } = *options;
        let live = vec![Hypothesis::default()];
        Self { source, start, end, beams, length_penalty, live, finished: Vec::new() }
    }

    /// The rows of the next step.
    fn rows(&self) -> impl Iterator<Item = Row> {
        let first = self.source * self.beams as u32;
        (first..).zip(&self.live).map(|(sequence, hypothesis)| {
            let token = hypothesis.ids.last().copied().unwrap_or(self.start);
            Row { sequence, source: self.source, token }
        })
    }

    fn penalised(&self, hypothesis: &Hypothesis) -> f64 {
        hypothesis.score / ((5.0 + hypothesis.ids.len() as f64) / 6.0).powf(self.length_penalty)
    }

    /// Grows every hypothesis by the tokens found for it: of the best `2 · beams` continuations, those that end are
    /// finished, and the best others go on.
    fn advance(&mut self, top: &[Vec<(u32, f32)>], routes: &[TokenRoutes], parents: &mut [u32]) {
        let mut grown: Vec<(usize, u32, f64)> = Vec::new();
        for (parent, (hypothesis, top)) in self.live.iter().zip(top).enumerate() {
            grown.extend(top.iter().map(|&(id, log)| (parent, id, hypothesis.score + f64::from(log))));
        }
        grown.sort_by(|a, b| b.2.total_cmp(&a.2));
        let first = self.source as usize * self.beams;
        let mut next = Vec::new();
        for (parent, id, score) in grown.into_iter().take(2 * self.beams) {
            if id != self.end && next.len() == self.beams {
                continue;
            }
            let mut hypothesis = self.live[parent].clone();
            hypothesis.ids.push(id);
            hypothesis.routes.extend(routes.get(parent).cloned());
            hypothesis.score = score;
            if id == self.end {
                hypothesis.score = self.penalised(&hypothesis);
                self.finished.push(hypothesis);
            } else {
                parents[first + next.len()] = (first + parent) as u32;
                next.push(hypothesis);
            }
        }
        self.live = next;
        if self.finished.len() >= self.beams {
            self.live.clear();
        }
    }

    /// The best translation. `cut` is what ends a search that is not done.
    fn finish(mut self, source: &[u32], source_routes: Vec<TokenRoutes>, cut: StopReason) -> Translation {
        let done = self.live.is_empty() || !self.finished.is_empty() && cut != StopReason::Cancelled;
        let stopped = if done { StopReason::StopToken } else { cut };
        if self.finished.is_empty() {
            let scores: Vec<f64> = self.live.iter().map(|hypothesis| self.penalised(hypothesis)).collect();
            self.live.iter_mut().zip(scores).for_each(|(hypothesis, score)| hypothesis.score = score);
            self.finished = std::mem::take(&mut self.live);
        }
        let best = self
            .finished
            .into_iter()
            .reduce(|best, other| if other.score > best.score { other } else { best });
        let Hypothesis { ids, score, routes } = best.unwrap_or_default();
        Translation { ids, score, source_routes, routes, stopped, ..Translation::nothing(source) }
    }
}
