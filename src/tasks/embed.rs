//! Texts as vectors: hidden states behind the last norm, pooled.

use super::{
    Model,
    packing::{Ask, Packing, Piece},
};
#[cfg(feature = "tokenizer")]
use crate::models::Task;
use crate::{Cancel, Error, Result, sessions::LogitRows};

/// Which hidden states of a text become its vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over all tokens.
    #[default]
    Mean,
    /// That of the last token, which in a decoder has seen all others.
    Last,
    /// That of the first token, the class token of encoders that have one.
    First,
}

/// How to make vectors of texts.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Embed {
    pooling: Pooling,
    normalize: bool,
    cut: bool,
    step_tokens: Option<usize>,
    #[serde(skip)]
    cancel: Cancel,
}

impl Embed {
    /// The mean over a text's tokens, of whatever length it is; texts longer than the model's context are refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which hidden states count.
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = pooling;
        self
    }

    /// Divides each vector by its length (L2), so that dot products are cosines.
    pub fn normalize(mut self, on: bool) -> Self {
        self.normalize = on;
        self
    }

    /// Of a text longer than the model's context, reads the first tokens, as many as that holds.
    pub fn cut(mut self, on: bool) -> Self {
        self.cut = on;
        self
    }

    /// Tokens of a step at the most, over all texts that are side by side: 1,024 unless said otherwise, and fewer where the
    /// GPU's memory has no room for so many. An encoder reads each text in one step, however long it is.
    pub fn step_tokens(mut self, tokens: usize) -> Self {
        self.step_tokens = Some(tokens);
        self
    }

    /// Lets another thread or handler stop the work, which then ends without an error: texts that it does not have are empty
    /// vectors.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }
}

impl Pooling {
    /// Which tokens of a piece count, of a text of `length` tokens.
    fn rows(self, piece: &Piece, length: usize) -> LogitRows<'static> {
        match self {
            Self::Mean => LogitRows::All,
            Self::Last if piece.tokens.end == length => LogitRows::Last,
            Self::First if piece.tokens.start == 0 => LogitRows::At(&[0]),
            Self::Last | Self::First => LogitRows::None,
        }
    }
}

/// The hidden states of a text that were read so far.
#[derive(Clone)]
struct Sum {
    values: Vec<f64>,
    rows: usize,
    /// Tokens that were read.
    tokens: usize,
}

impl Sum {
    fn add(&mut self, row: &[f32]) {
        self.values.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        self.rows += 1;
    }

    /// Their mean, of length 1 if wanted; zero has no direction and stays zero.
    fn vector(&self, normalize: bool) -> Vec<f32> {
        let mean: Vec<f64> = self.values.iter().map(|sum| sum / self.rows.max(1) as f64).collect();
        let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        let scale = if normalize && length > 0.0 { length } else { 1.0 };
        mean.iter().map(|value| (value / scale) as f32).collect()
    }
}

impl Model {
    /// A vector of each text, `[width]`: its tokens' hidden states behind the last norm, pooled.
    ///
    /// A text has the same vector, but for rounding, whatever other texts are beside it. There is one for each text, an empty one
    /// where [`Cancel`] ends the work before the text's end.
    ///
    /// # Errors
    /// A model that translates or reads images, a text of no tokens, or of more than the model's context unless
    /// [`Embed::cut`] says what to do (numbered from 0), [`Error::NotFinite`], and what the GPU reports.
    #[cfg(feature = "tokenizer")]
    pub async fn embed(&self, texts: &[&str], options: &Embed) -> Result<Vec<Vec<f32>>> {
        self.check_reads_text()?;
        let mut ids = self.encode_all(texts, options.cut)?;
        if let Task::FillMask { end, .. } = self.task {
            // As the model was trained to read texts.
            ids.iter_mut().filter(|ids| ids.last() != Some(&end)).for_each(|ids| ids.push(end));
        }
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        self.embed_ids(&ids, options).await
    }

    /// As [`Model::embed`], of texts as ids, which end as the model wants them to.
    ///
    /// # Errors
    /// As [`Model::embed`], and an id outside the vocabulary.
    pub async fn embed_ids(&self, sequences: &[&[u32]], options: &Embed) -> Result<Vec<Vec<f32>>> {
        self.check_reads_text()?;
        self.check_texts(sequences, options.cut)?;
        if let Some(text) = sequences.iter().position(|ids| ids.is_empty()) {
            return Err(Error::argument("text", format!("no tokens in text {text}"), "at least one"));
        }
        let (context, width) = (self.info().context as usize, self.info().width as usize);
        let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len().min(context)).collect();
        let stack = &self.transformer.spec.stack;
        let packing = Packing {
            step_tokens: options.step_tokens,
            whole: stack.whole_sequences().is_some(),
            alone: stack.cuts_sequences(),
            hidden: true,
        };
        let Some(packed) = self.pack(&lengths, packing)? else { return Ok(Vec::new()) };
        let mut sums = vec![Sum { values: vec![0.0; width], rows: 0, tokens: 0 }; sequences.len()];
        let ask = |piece: &Piece| Ask {
            ids: &sequences[piece.text][piece.tokens.clone()],
            rows: options.pooling.rows(piece, lengths[piece.text]),
            targets: &[],
        };
        let take = |piece: &Piece, states: &[f32]| {
            let sum = &mut sums[piece.text];
            states.chunks_exact(width).for_each(|row| sum.add(row));
            sum.tokens += piece.tokens.len();
        };
        packed.read(&options.cancel, ask, take).await?;
        let vector = |(sum, &length): (&Sum, &usize)| match sum.tokens == length {
            true => sum.vector(options.normalize),
            false => Vec::new(),
        };
        Ok(sums.iter().zip(&lengths).map(vector).collect())
    }
}
