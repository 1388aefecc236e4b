//! Logits and routes of given tokens.

use super::Model;
use crate::{
    Error, Result,
    models::Task,
    sessions::{
        LayerUse, LogitRows, Room, Routes, Run, SessionOptions, TokenRoutes,
        router_use::{layer_use, tallies},
        steps,
    },
};
#[cfg(not(target_arch = "wasm32"))]
use crate::{
    sessions::{Choice, RouteArray},
    weights::{TensorData, write_safetensors},
};

/// Logits and routes of one sequence.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Logits {
    /// Size of the vocabulary.
    pub vocab: usize,
    /// `[tokens, vocab]`
    pub values: Vec<f32>,
    /// One for each token.
    pub routes: Vec<TokenRoutes>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Logits {
    /// Writes a safetensors file: `logits` `[tokens, vocab]`; `routed_heads` and `routed_experts` `[tokens, layers, k]`, the head
    /// and MLP experts of all layers (i32, −1 where there is none); and, for each layer i and each of its routers (`attention`,
    /// `values`, `mlp`), `layers.i.attention.experts` and `layers.i.attention.gates`, `[tokens, k]`: shared experts, then
    /// the others best first. A router whose tokens differ in how many experts they use is left out.
    ///
    /// The file appears only once it is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let tokens = self.routes.len();
        let values = TensorData::F32(self.values.clone());
        let mut tensors = vec![("logits".to_owned(), vec![tokens, self.vocab], values)];
        let arrays = [RouteArray::heads(&self.routes), RouteArray::experts(&self.routes)];
        for (name, array) in ["routed_heads", "routed_experts"].into_iter().zip(arrays) {
            if array.shape[2] > 0 {
                tensors.push((name.to_owned(), array.shape.to_vec(), TensorData::I32(array.experts)));
            }
        }
        let layers = self.routes.first().map_or(0, |token| token.layers.len());
        for index in 0..layers {
            let layer = || self.routes.iter().filter_map(|token| token.layers.get(index));
            let names = self.routes[0].layers[index].routers().map(|(name, _)| name);
            for part in names {
                let of_part = layer().filter_map(|layer| layer.routers().find(|(name, _)| *name == part));
                let choices: Vec<&[Choice]> = of_part.map(|(_, choices)| choices).collect();
                // Where whole sequences are cut, tokens differ in how many heads take them.
                if choices.len() != tokens || choices.iter().any(|one| one.len() != choices[0].len()) {
                    continue;
                }
                let shape = vec![tokens, choices[0].len()];
                let choices = choices.concat();
                let experts = TensorData::U32(choices.iter().map(|choice| choice.expert).collect());
                let gates = TensorData::F32(choices.iter().map(|choice| choice.gate).collect());
                tensors.push((format!("layers.{index}.{part}.experts"), shape.clone(), experts));
                tensors.push((format!("layers.{index}.{part}.gates"), shape, gates));
            }
        }
        write_safetensors(path.as_ref(), &tensors)
    }
}

/// Tokens of one step; bounds the logits buffer.
const STEP_TOKENS: usize = 64;

/// Tokens of one step without logits.
const ROUTE_TOKENS: usize = 512;

impl Model {
    /// Logits and routes of every token of `sequences`, each its own text; of those alone that were read, where [`Cancel`](crate::Cancel) ends
    /// it.
    ///
    /// # Errors
    /// An empty sequence, one longer than the model's context, an id outside the vocabulary, and what the GPU
    /// reports.
    pub async fn logits(&self, sequences: &[&[u32]]) -> Result<Vec<Logits>> {
        self.logits_in_steps(sequences, STEP_TOKENS).await
    }

    /// As [`Model::logits`], with at most `step_tokens` tokens in one step: 1 works as decoding does.
    ///
    /// # Errors
    /// As [`Model::logits`].
    pub async fn logits_in_steps(&self, sequences: &[&[u32]], step_tokens: usize) -> Result<Vec<Logits>> {
        self.check_reads_text()?;
        self.check_prompts(sequences)?;
        if step_tokens == 0 {
            return Err(Error::argument("step tokens", 0, "at least 1"));
        }
        let longest = sequences.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let runs: Vec<Run<'_>> = (0..)
            .zip(sequences)
            .map(|(sequence, ids)| Run::ids(sequence, ids).logits(LogitRows::All))
            .collect();
        let most = step_tokens.min(STEP_TOKENS);
        let plan = steps(&self.transformer.spec.stack, &runs, Room { tokens: most, rows: most });
        let tokens = |runs: &Vec<Run<'_>>| runs.iter().map(Run::tokens).sum();
        let step_tokens: usize = plan.iter().map(tokens).max().unwrap_or(0);
        let layout = SessionOptions::new()
            .sequences(sequences.len() as u32)
            .positions(longest as u32)
            .reserve(longest as u32)
            .step_tokens(step_tokens as u32)
            .logit_rows(step_tokens as u32);
        let mut session = self.session(layout)?;
        let vocab = self.info().vocab as usize;
        let mut results: Vec<Logits> = sequences
            .iter()
            .map(|ids| Logits { vocab, values: Vec::with_capacity(ids.len() * vocab), routes: Vec::new() })
            .collect();
        for runs in plan {
            session.forward(&runs)?;
            let (values, routes) = match session.read_logits().await {
                Err(Error::Cancelled) => break,
                read => read?,
            };
            let mut token = 0;
            for run in runs {
                let (result, count) = (&mut results[run.sequence() as usize], run.tokens());
                result.values.extend_from_slice(&values[token * vocab..(token + count) * vocab]);
                result.routes.extend((token..token + count).map(|token| routes.token(token)));
                token += count;
            }
        }
        Ok(results)
    }

    /// The experts that the tokens of a text chose. A text longer than the model's context is read in pieces of
    /// that length, each on its own. Where [`Cancel`](crate::Cancel) ends it, these are the routes of the tokens that were read.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, and what the GPU reports.
    pub async fn routes(&self, ids: &[u32]) -> Result<Vec<TokenRoutes>> {
        let mut result = Vec::with_capacity(ids.len());
        self.read_routes(ids, |routes| result.extend(routes.iter())).await?;
        Ok(result)
    }

    /// How much the tokens of a text use each expert of each layer. A long text is read as by [`Model::routes`].
    ///
    /// # Errors
    /// As [`Model::routes`].
    pub async fn expert_use(&self, ids: &[u32]) -> Result<Vec<LayerUse>> {
        let stack = &self.transformer.spec.stack;
        let mut sums = tallies(stack);
        self.read_routes(ids, |routes| routes.tally(&mut sums)).await?;
        Ok(layer_use(stack, sums))
    }

    /// Reads a text and shows what the routers did in each step.
    async fn read_routes(&self, ids: &[u32], mut show: impl FnMut(&Routes)) -> Result<()> {
        let context = self.info().context as usize;
        self.check_reads_text()?;
        self.check_prompts(&[ids.get(..context).unwrap_or(ids)])?;
        let whole = self.transformer.spec.stack.whole_sequences().is_some();
        for piece in ids.chunks(context) {
            let step_tokens = if whole { piece.len() } else { piece.len().min(ROUTE_TOKENS) };
            let layout = SessionOptions::new()
                .positions(piece.len() as u32)
                .reserve(piece.len() as u32)
                .step_tokens(step_tokens as u32);
            let mut session = self.session(layout)?;
            for step in piece.chunks(step_tokens) {
                session.forward(&[Run::ids(0, step).logits(LogitRows::None)])?;
                match session.routes().await {
                    Err(Error::Cancelled) => return Ok(()),
                    routes => show(&routes?),
                }
            }
        }
        Ok(())
    }

    /// Refuses a model that reads more, or other things, than one text.
    pub(super) fn check_reads_text(&self) -> Result<()> {
        match self.task {
            Task::Generate | Task::FillMask { .. } => Ok(()),
            Task::Translate { .. } | Task::Classify(_) => Err(self.wrong_task("generate or fill")),
        }
    }

    /// Refuses what cannot be a batch of prompts for this model.
    pub(super) fn check_prompts(&self, prompts: &[&[u32]]) -> Result<()> {
        let context = self.info().context;
        if prompts.is_empty() {
            return Err(Error::argument("prompts", "none", "at least one"));
        }
        for ids in prompts {
            if ids.is_empty() {
                return Err(Error::argument("prompt", "no tokens", "at least one token"));
            }
            if ids.len() > context as usize {
                let found = format!("{} tokens", ids.len());
                return Err(Error::argument("prompt", found, format!("at most the model's {context}")));
            }
        }
        Ok(())
    }
}
