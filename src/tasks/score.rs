//! How likely a model finds texts: log-probabilities token by token, computed on the GPU.

use serde::Serialize;

use super::{
    Model,
    packing::{Ask, Packing, Piece},
};
use crate::{
    Cancel, Error, Result,
    sessions::{LogitRows, check_ids},
};

/// How to score texts.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Score {
    cut: bool,
    step_tokens: Option<usize>,
    #[serde(skip)]
    cancel: Cancel,
}

impl Score {
    /// Texts longer than the model's context are refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a text that is longer than the model's context in pieces of that length, each on its own. All tokens but the
    /// text's first are scored; one at the start of a later piece has only that piece before it.
    pub fn cut(mut self, on: bool) -> Self {
        self.cut = on;
        self
    }

    /// Tokens of a step at the most, over all texts that are side by side: 1,024 unless said otherwise, and fewer where the
    /// GPU's memory or its largest binding has no room for the logits of so many.
    pub fn step_tokens(mut self, tokens: usize) -> Self {
        self.step_tokens = Some(tokens);
        self
    }

    /// Lets another thread or handler stop the work, which then ends without an error: [`Scored::is_whole`] tells which texts it has.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }
}

/// How likely a model finds a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Scored {
    /// The ids of the text.
    pub ids: Vec<u32>,
    /// `ln p` in nats of each id given those before it: of all but the first, before which there is nothing. Of fewer, the text's
    /// first ones, where [`Cancel`] ended the work in its midst.
    pub logprobs: Vec<f32>,
}

impl Scored {
    /// Whether all tokens are scored, as they are unless [`Cancel`] ended the work before.
    pub fn is_whole(&self) -> bool {
        self.logprobs.len() == self.ids.len().saturating_sub(1)
    }

    /// The sum of the log-probabilities, of a whole text `ln p` given its first token; 0 where none is scored.
    pub fn sum(&self) -> f64 {
        // From 0.0: the sum of no floats is -0.0.
        self.logprobs.iter().fold(0.0, |sum, &logprob| sum + f64::from(logprob))
    }

    /// `exp(−mean ln p)`; nothing where no token is scored.
    pub fn perplexity(&self) -> Option<f64> {
        (!self.logprobs.is_empty()).then(|| (-self.sum() / self.logprobs.len() as f64).exp())
    }
}

/// A part of a text that is read on its own: the tokens from `start` to before `end` each say how likely the next is.
struct Part {
    text: usize,
    start: usize,
    end: usize,
}

impl Model {
    /// How likely each token of each text is, given those before it. The GPU looks the tokens up, so that four bytes of each
    /// come back. Where the tokenizer puts a start token before a text, the text's own first token is scored, too.
    ///
    /// A text has the same log-probabilities, but for rounding, whatever other texts are beside it. There is one result for each text,
    /// where [`Cancel`] ends the work, too.
    ///
    /// # Errors
    /// A model that does not write, a text longer than its context (numbered from 0) unless [`Score::cut`] says what to do,
    /// [`Error::NotFinite`], and what the GPU reports.
    #[cfg(feature = "tokenizer")]
    pub async fn score(&self, texts: &[&str], options: &Score) -> Result<Vec<Scored>> {
        self.check_generates()?;
        let ids = self.encode_all(texts, options.cut)?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        self.score_ids(&ids, options).await
    }

    /// As [`Model::score`], of texts as ids. One of no tokens or a single one has nothing to score.
    ///
    /// # Errors
    /// As [`Model::score`], and an id outside the vocabulary.
    pub async fn score_ids(&self, sequences: &[&[u32]], options: &Score) -> Result<Vec<Scored>> {
        self.score_each(sequences, options, |_| ()).await
    }

    /// As [`Model::score_ids`], for who keeps what there is however the work ends, by an error, too: `whole` is shown each text as
    /// soon as it and all before it are scored, in their order. Texts that were not scored to their end are not shown.
    ///
    /// # Errors
    /// As [`Model::score_ids`].
    pub async fn score_each(
        &self,
        sequences: &[&[u32]],
        options: &Score,
        mut whole: impl FnMut(&Scored),
    ) -> Result<Vec<Scored>> {
        self.check_generates()?;
        self.check_texts(sequences, options.cut)?;
        let new = |ids: &&[u32]| Scored { ids: ids.to_vec(), logprobs: Vec::new() };
        let mut results: Vec<Scored> = sequences.iter().map(new).collect();
        let mut shown = 0;
        let mut show = |results: &[Scored]| {
            for scored in results[shown..].iter().take_while(|scored| scored.is_whole()) {
                whole(scored);
                shown += 1;
            }
        };
        show(&results);
        let parts = self.parts(sequences);
        let lengths: Vec<usize> = parts.iter().map(|part| part.end - part.start).collect();
        let packing = Packing { step_tokens: options.step_tokens, whole: false, alone: false, hidden: false };
        if let Some(packed) = self.pack(&lengths, packing)? {
            let ask = |piece: &Piece| {
                let Part { text, start, .. } = parts[piece.text];
                let (first, end) = (start + piece.tokens.start, start + piece.tokens.end);
                let ids = sequences[text];
                Ask { ids: &ids[first..end], rows: LogitRows::All, targets: &ids[first + 1..=end] }
            };
            let take = |piece: &Piece, logprobs: &[f32]| {
                results[parts[piece.text].text].logprobs.extend_from_slice(logprobs);
                show(&results);
            };
            packed.read(&options.cancel, ask, take).await?;
        }
        Ok(results)
    }

    /// All tokens of each text but its last, in parts that the context holds.
    fn parts(&self, sequences: &[&[u32]]) -> Vec<Part> {
        let context = self.info().context as usize;
        let parts = |(text, ids): (usize, &&[u32])| {
            let read = ids.len().saturating_sub(1);
            let part = move |start| Part { text, start, end: read.min(start + context) };
            (0..read).step_by(context).map(part)
        };
        sequences.iter().enumerate().flat_map(parts).collect()
    }

    /// Refuses a text of ids that this model does not have or, unless it may be cut, of more than it reads.
    pub(super) fn check_texts(&self, sequences: &[&[u32]], cut: bool) -> Result<()> {
        let (context, vocab) = (self.info().context, self.info().vocab);
        for (text, ids) in sequences.iter().enumerate() {
            check_ids(ids, vocab)?;
            if !cut && ids.len() > context as usize {
                let found = format!("{} tokens in text {text}", ids.len());
                return Err(Error::argument("text", found, format!("at most the model's {context}")));
            }
        }
        Ok(())
    }

    /// The ids of texts; those of one that may be cut, however many they are.
    #[cfg(feature = "tokenizer")]
    pub(super) fn encode_all(&self, texts: &[&str], cut: bool) -> Result<Vec<Vec<u32>>> {
        let tokenizer = self.tokenizer()?;
        let encode = |(index, text): (usize, &&str)| match cut {
            true => tokenizer.encode(text),
            false => self.encode(text).map_err(|error| match error {
                Error::Argument { found, expected, .. } => {
                    Error::Argument { name: "text", found: format!("{found} in text {index}"), expected }
                }
                other => other,
            }),
        };
        texts.iter().enumerate().map(encode).collect()
    }
}
