//! Text in and out.

use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    tokenizer::DecodeStream,
};

use super::{MAX_TOKENIZER, TOKENIZER_FILE};
use crate::{Error, Result, weights::Source};

/// A model's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, if the folder has one.
    pub(super) async fn read(source: &Source) -> Result<Option<Self>> {
        let file = source.path_of(TOKENIZER_FILE);
        let Some(json) = source.read_small(TOKENIZER_FILE, MAX_TOKENIZER).await? else {
            return Ok(None);
        };
        let wrong =
            |error: tokenizers::Error| Error::Tokenizer { file: file.clone(), message: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(wrong)?;
        // Texts are read whole, and a batch needs no padding.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(wrong)?;
        Ok(Some(Self { inner, file }))
    }

    /// The ids of a text, with the special tokens that the tokenizer adds by itself.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|error| self.error(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text that has its special tokens in it: none are added.
    #[cfg(feature = "chat")]
    pub(super) fn encode_as_it_is(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|error| self.error(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token by its name in the vocabulary.
    #[cfg(feature = "chat")]
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a text as [`Tokenizer::encode`] gives them, each with the part of the text that it stands for.
    /// These parts, one after the other, are the text.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn pieces(&self, text: &str) -> Result<Vec<(u32, String)>> {
        let encoding = self.inner.encode(text, true).map_err(|error| self.error(&error))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        let mut start = 0;
        let mut pieces: Vec<(u32, String)> = Vec::with_capacity(encoding.len());
        for (&id, &(_, end)) in tokens {
            // Of several tokens for one character, one has it.
            let piece = text.get(start..end).unwrap_or_default();
            start += piece.len();
            pieces.push((id, piece.to_owned()));
        }
        if let Some((_, last)) = pieces.last_mut() {
            last.push_str(&text[start..]);
        }
        Ok(pieces)
    }

    /// The ids of a text that ends with `end`, whether the tokenizer adds it or not.
    pub(super) fn encode_ending(&self, text: &str, end: u32) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| self.error(&error))
    }

    /// The name of a token as the vocabulary has it: `[MASK]`, or `▁file` with a space's stand-in.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Decodes ids one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, inner: self.inner.decode_stream(true) }
    }

    fn error(&self, error: &tokenizers::Error) -> Error {
        Error::Tokenizer { file: self.file.clone(), message: error.to_string() }
    }
}

/// Decodes ids as they come.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    inner: DecodeStream<
        'a,
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >,
}

impl TextStream<'_> {
    /// Adds an id and returns the text that became certain: empty while a character is incomplete.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let text = self.inner.step(id).map_err(|error| self.tokenizer.error(&error))?;
        Ok(text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        for (folder, text) in [
            ("models/ui-fill", "  Größe\u{301} of [MASK]  [MASK], naïve 🦀🦀\n "),
            ("models/ui-fill", "[MASK]"),
            ("models/ui-en-de", " 漢字 and “{0}”…"),
            ("models/ui-en-de", ""),
            ("models/prose", "It is a truth\u{1F468}\u{200D}\u{1F469} "),
        ] {
            let tokenizer = crate::block_on(Tokenizer::read(&Source::folder(folder))).unwrap().unwrap();
            let pieces = tokenizer.pieces(text).unwrap();
            let ids: Vec<u32> = pieces.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, tokenizer.encode(text).unwrap());
            assert_eq!(
                pieces.iter().map(|(_, piece)| piece.as_str()).collect::<String>(),
                text,
                "{pieces:?}"
            );
        }
    }
}
