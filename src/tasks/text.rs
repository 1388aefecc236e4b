//! Text in and out.

mod charsmap;
mod check;
mod decoder;
mod growth;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokenizers::{Encoding, ModelWrapper};

use self::decoder::{Decoder, Decoding};
use super::{MAX_TOKENIZER, TOKENIZER_FILE};
use crate::{
    Error, Result,
    error::bytes,
    guard::{self, Broken},
    weights::Source,
};

/// How long a file may take to be read.
const LOAD_TIME: Duration = Duration::from_secs(120);

/// How long a text may take: far more than any tokenizer needs that works as it should.
fn encode_time(text: &str) -> Duration {
    Duration::from_secs(10) + Duration::from_micros(20) * text.len().try_into().unwrap_or(u32::MAX)
}

/// The longest text in bytes that the model of a tokenizer may be given; each byte takes some 30 of memory on the way.
const MAX_NORMALIZED: u64 = 256 << 20;
/// The same of a tokenizer that may make a text more than so many times as long. Published ones stay below: 12 are those of a
/// `▁` in front and one for each space.
const PLAIN_GROWTH: u64 = 16;
const MAX_GROWN: u64 = 4 << 20;

/// The longest message of the library that is shown, in characters.
const MAX_MESSAGE: usize = 400;

/// A model's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    decoder: Arc<Decoder>,
    /// How many times as long a text may become before it is cut into tokens.
    growth: u64,
    /// A text took too long: the thread that it was given may still run, and no other is started.
    stuck: Arc<AtomicBool>,
    file: String,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({})", self.file)
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, if the folder has one.
    pub(super) async fn read(source: &Source) -> Result<Option<Self>> {
        match source.read_text(TOKENIZER_FILE, MAX_TOKENIZER).await? {
            Some(json) => Self::parse(source.path_of(TOKENIZER_FILE), json).map(Some),
            None => Ok(None),
        }
    }

    /// From the bytes of a `tokenizer.json`, in the form of the `tokenizers` library.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for what is no such file, or describes a tokenizer that does not work.
    pub fn from_bytes(json: impl Into<Vec<u8>>) -> Result<Self> {
        let json = json.into();
        if json.len() as u64 > MAX_TOKENIZER {
            let expected = format!("at most {}", bytes(MAX_TOKENIZER));
            return Err(Error::bad_file(TOKENIZER_FILE, "file length", bytes(json.len() as u64), expected));
        }
        Self::parse(TOKENIZER_FILE.to_owned(), json)
    }

    /// From the bytes of `file`.
    pub(crate) fn parse(file: String, json: Vec<u8>) -> Result<Self> {
        let wrong = |message: &str| Error::Tokenizer { file: file.clone(), message: printable(message) };
        let growth = check::check(&json).map_err(|found| wrong(&found))?.growth;
        let inner = guard::run(LOAD_TIME, move || {
            let mut inner = tokenizers::Tokenizer::from_bytes(&json)?;
            // Texts are read whole, and a batch needs no padding.
            inner.with_padding(None);
            inner.with_truncation(None)?;
            // Merges are dropped at random in training only.
            if let ModelWrapper::BPE(bpe) = inner.get_model()
                && bpe.dropout.is_some()
            {
                let mut bpe = bpe.clone();
                bpe.dropout = None;
                inner.with_model(bpe);
            }
            check::check_added(inner.get_added_vocabulary())?;
            Ok::<_, tokenizers::Error>(inner)
        });
        let inner = match inner {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(wrong(&error.to_string())),
            Err(broken) => return Err(wrong(&said(&broken))),
        };
        let decoder = Arc::new(Decoder::new(inner.get_decoder()));
        Ok(Self { inner: Arc::new(inner), decoder, growth, stuck: Arc::default(), file })
    }

    /// The ids of a text, with the special tokens that the tokenizer adds by itself.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenize(text, true, Offsets::Unknown)?.get_ids().to_vec())
    }

    /// The ids of a text that has its special tokens in it: none are added.
    #[cfg(feature = "chat")]
    pub(super) fn encode_as_it_is(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.refuse_by_bytes("conversation", text, most)?;
        Ok(self.tokenize(text, false, Offsets::Unknown)?.get_ids().to_vec())
    }

    /// [`Tokenizer::encode`] for a model that reads `most` tokens: a text that is much too long is refused without the work.
    pub(super) fn encode_for(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.refuse_by_bytes("prompt", text, most)?;
        self.encode(text)
    }

    /// Refuses a text the start of which has far more than `most` tokens.
    ///
    /// Bytes alone say little: rules may drop spaces, and one unknown token may stand for a word of any length. So a start
    /// of [`START_BYTES`] for each token is looked at, then four times as much, until there are too many tokens or little
    /// is left. Where a start ends, its tokens may differ from those of the whole; twice as many as are allowed is no
    /// such difference.
    fn refuse_by_bytes(&self, name: &'static str, text: &str, most: usize) -> Result<()> {
        self.refuse_growth(name, text)?;
        let mut start = most.saturating_mul(START_BYTES).max(MIN_START);
        while start < text.len() / 2 {
            let read = text.floor_char_boundary(start);
            let tokens = self.tokenize(&text[..read], false, Offsets::Unknown)?.len();
            if tokens > most.saturating_mul(2) {
                let (start, all) = (bytes(read as u64), bytes(text.len() as u64));
                let found = format!("{tokens} tokens in the first {start} of {all}");
                return Err(Error::argument(name, found, format!("at most the model's {most}")));
            }
            start = start.saturating_mul(4);
        }
        Ok(())
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
        let encoding = self.tokenize(text, true, Offsets::Known)?;
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

    /// The text of ids, without special tokens and without those that no token has. Bytes that are no characters become
    /// `U+FFFD`.
    ///
    /// # Errors
    /// None today.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(self.texts(ids).concat())
    }

    /// What each id adds to the text of all of them: texts that, one after the other, are what [`Tokenizer::decode`] makes.
    pub fn texts(&self, ids: &[u32]) -> Vec<String> {
        let mut stream = self.stream();
        let mut texts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        if let Some(last) = texts.last_mut() {
            last.push_str(&stream.finish());
        }
        texts
    }

    /// The name of a token as the vocabulary has it: `[MASK]`, or `▁file` with a space's stand-in.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Decodes ids one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, decoding: self.decoder.start() }
    }

    /// Refuses a text of which the tokenizer may make one that is too long.
    fn refuse_growth(&self, name: &'static str, text: &str) -> Result<()> {
        let (length, growth) = (text.len() as u64, self.growth);
        let most = if growth > PLAIN_GROWTH { MAX_GROWN } else { MAX_NORMALIZED };
        if length.saturating_mul(growth) <= most {
            return Ok(());
        }
        let most = bytes(most / growth);
        let why = format!("at most {most} for a tokenizer that may make a text {growth} times as long");
        Err(Error::argument(name, bytes(length), why))
    }

    /// Cuts a text into tokens, with a limit to what that may cost.
    fn tokenize(&self, text: &str, with_specials: bool, offsets: Offsets) -> Result<Encoding> {
        let wrong = |message: &str| Error::Tokenizer { file: self.file.clone(), message: printable(message) };
        self.refuse_growth("text", text)?;
        if self.stuck.load(Ordering::Relaxed) {
            return Err(wrong("a text before took it too long"));
        }
        let (inner, given, limit) = (Arc::clone(&self.inner), text.to_owned(), encode_time(text));
        let encoding = guard::run(limit, move || match offsets {
            Offsets::Known => inner.encode(given, with_specials),
            Offsets::Unknown => inner.encode_fast(given, with_specials),
        });
        match encoding {
            Ok(Ok(encoding)) => Ok(encoding),
            Ok(Err(error)) => Err(wrong(&error.to_string())),
            Err(broken) => {
                self.stuck.store(matches!(broken, Broken::TooSlow(_)), Ordering::Relaxed);
                Err(wrong(&said(&broken)))
            }
        }
    }
}

/// Bytes of a text's start for each token that is allowed, and at the least, before its tokens are counted.
const START_BYTES: usize = 8;
const MIN_START: usize = 16 << 10;

/// Whether it matters where in the text a token stands: to know it takes memory.
#[derive(Clone, Copy)]
enum Offsets {
    Known,
    Unknown,
}

/// What guarded work says of itself.
fn said(broken: &Broken) -> String {
    match broken {
        Broken::Panicked(message) => format!("the file breaks the tokenizers library: {message}"),
        Broken::TooSlow(limit) => format!("it took longer than {} s and was given up", limit.as_secs()),
    }
}

/// A message of the library, or with something of the file in it, on one line and of a length to be read.
fn printable(message: &str) -> String {
    let mut shown = String::new();
    for (index, char) in message.chars().enumerate() {
        match char {
            _ if index == MAX_MESSAGE => {
                shown.push('…');
                break;
            }
            char if char.is_control() => shown.extend(char.escape_default()),
            char => shown.push(char),
        }
    }
    shown
}

/// Decodes ids as they come.
///
/// Whatever the ids: the texts that [`TextStream::push`] gives, one after the other, and the one of [`TextStream::finish`]
/// are what [`Tokenizer::decode`] makes of all of them. What a later id may still change is held back: bytes that are no
/// whole character, and with decoders that read bytes in runs, a run until it ends.
#[derive(Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    decoding: Decoding,
}

impl fmt::Debug for TextStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextStream").field("tokenizer", self.tokenizer).finish_non_exhaustive()
    }
}

impl TextStream<'_> {
    /// Adds an id and returns the text that became certain: empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        let Tokenizer { inner, decoder, .. } = self.tokenizer;
        let mut text = String::new();
        if let Some(token) = inner.id_to_token(id)
            && !inner.get_added_vocabulary().is_special_token(&token)
        {
            decoder.push(&mut self.decoding, token, &mut text);
        }
        text
    }

    /// Ends the text and returns what was held back. The next id begins another text.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.tokenizer.decoder.finish(&mut self.decoding, &mut text);
        text
    }

    /// Lets what comes next go on from `ids`, the text of which is known: a word then keeps the space before it, which
    /// decoders drop at the start of a text.
    pub fn go_on_from(&mut self, ids: &[u32]) {
        for &id in ids {
            self.push(id);
        }
        self.tokenizer.decoder.cut(&mut self.decoding);
    }
}

#[cfg(test)]
mod tests;
