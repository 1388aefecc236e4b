//! How tokens become text, one token at a time.
//!
//! A decoder of the `tokenizers` crate takes all tokens of a text at once. Here each of its steps takes them as they come
//! and holds back what a later token may still change, so that the text of a stream is, for any tokens, the text of all
//! of them together. The names and the meaning of the steps are those of `tokenizer.json`.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokenizers::{
    Decoder as _, DecoderWrapper, decoders::wordpiece::cleanup, pre_tokenizers::metaspace::PrependScheme,
};

use crate::guard;

/// What stands for bytes that are no text.
const REPLACEMENT: &str = "\u{fffd}";

/// A decoder as a chain of steps.
pub struct Decoder(Vec<Stage>);

/// A step, and what it takes: tokens, or the parts of one token that the steps before it have joined.
struct Stage {
    step: Step,
    joined: bool,
}

enum Step {
    /// A space between tokens: what is done where no decoder is named.
    Spaces,
    Replace {
        pattern: String,
        content: String,
    },
    /// Replaces by a regular expression.
    Regex {
        replace: Arc<DecoderWrapper>,
        gave_up: AtomicBool,
    },
    ByteFallback,
    Fuse,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    WordPiece {
        prefix: String,
        clean: bool,
    },
    Metaspace {
        replacement: char,
        drops_first: bool,
    },
    Bpe {
        suffix: String,
    },
    Ctc {
        pad: String,
        delimiter: String,
        clean: bool,
    },
    ByteLevel,
    /// Waits for the whole of a joined token, for a step that can do nothing with a part.
    Gather,
}

/// What a step remembers.
#[derive(Clone, Default)]
struct Memory {
    /// A token has come.
    begun: bool,
    /// Bytes that are no whole characters yet.
    bytes: Vec<u8>,
    /// Text held back, or the token before.
    text: Option<String>,
    /// Characters stripped from the start.
    stripped: usize,
}

/// Where a text stands when what is held back is asked for.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// It ends.
    End,
    /// Another text goes on from it.
    Seam,
}

/// A text that is being decoded.
#[derive(Clone)]
pub struct Decoding(Vec<Memory>);

impl Decoder {
    /// The steps of a decoder.
    pub fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let mut steps = Vec::new();
        match decoder {
            Some(decoder) => flatten(decoder, &mut steps),
            None => steps.push(Step::Spaces),
        }
        let (mut stages, mut joined) = (Vec::new(), false);
        for step in steps {
            if joined && !step.works_on_parts() {
                stages.push(Stage { step: Step::Gather, joined });
                joined = false;
            }
            let joins = matches!(step, Step::Fuse | Step::ByteLevel);
            stages.push(Stage { step, joined });
            joined |= joins;
        }
        Self(stages)
    }

    /// Starts a text.
    pub fn start(&self) -> Decoding {
        Decoding(vec![Memory::default(); self.0.len()])
    }

    /// Adds a token; `text` gets what has become certain.
    pub fn push(&self, decoding: &mut Decoding, token: String, text: &mut String) {
        feed(&self.0, &mut decoding.0, token, text);
    }

    /// Ends the text: `text` gets what was held back.
    pub fn finish(&self, decoding: &mut Decoding, text: &mut String) {
        flush(&self.0, &mut decoding.0, At::End, text);
        *decoding = self.start();
    }

    /// Lets another text go on from this one: nothing of this one comes out any more.
    pub fn cut(&self, decoding: &mut Decoding) {
        flush(&self.0, &mut decoding.0, At::Seam, &mut String::new());
    }
}

fn flatten(decoder: &DecoderWrapper, steps: &mut Vec<Step>) {
    steps.push(match decoder {
        DecoderWrapper::Sequence(sequence) => {
            return sequence.get_decoders().iter().for_each(|decoder| flatten(decoder, steps));
        }
        DecoderWrapper::Replace(replace) => {
            let pattern = serde_json::to_value(replace).ok();
            match pattern.as_ref().and_then(|value| value.pointer("/pattern/String")?.as_str()) {
                Some(pattern) => {
                    Step::Replace { pattern: pattern.to_owned(), content: replace.content.clone() }
                }
                None => Step::Regex { replace: Arc::new(decoder.clone()), gave_up: AtomicBool::new(false) },
            }
        }
        DecoderWrapper::ByteFallback(_) => Step::ByteFallback,
        DecoderWrapper::Fuse(_) => Step::Fuse,
        DecoderWrapper::Strip(strip) => {
            Step::Strip { content: strip.content, start: strip.start, stop: strip.stop }
        }
        DecoderWrapper::WordPiece(pieces) => {
            Step::WordPiece { prefix: pieces.prefix.clone(), clean: pieces.cleanup }
        }
        DecoderWrapper::Metaspace(metaspace) => Step::Metaspace {
            replacement: metaspace.get_replacement(),
            drops_first: metaspace.prepend_scheme != PrependScheme::Never,
        },
        DecoderWrapper::BPE(bpe) => Step::Bpe { suffix: bpe.suffix.clone() },
        DecoderWrapper::CTC(ctc) => Step::Ctc {
            pad: ctc.pad_token.clone(),
            delimiter: ctc.word_delimiter_token.clone(),
            clean: ctc.cleanup,
        },
        DecoderWrapper::ByteLevel(_) => Step::ByteLevel,
    });
}

/// Hands a token to the first stage, and what that gives to the next.
fn feed(stages: &[Stage], memories: &mut [Memory], token: String, text: &mut String) {
    let (Some((stage, stages)), Some((memory, memories))) =
        (stages.split_first(), memories.split_first_mut())
    else {
        return text.push_str(&token);
    };
    stage.take(memory, token, &mut |token| feed(stages, memories, token, text));
}

/// Empties the stages, first to last.
fn flush(stages: &[Stage], memories: &mut [Memory], at: At, text: &mut String) {
    let (Some((stage, stages)), Some((memory, memories))) =
        (stages.split_first(), memories.split_first_mut())
    else {
        return;
    };
    stage.give(memory, at, &mut |token| feed(stages, memories, token, text));
    flush(stages, memories, at, text);
}

impl Step {
    /// Whether it does the same to the parts of a token, one after the other, as to the token.
    fn works_on_parts(&self) -> bool {
        match self {
            Self::Fuse | Self::Strip { .. } | Self::Metaspace { .. } => true,
            Self::Replace { pattern, .. } => pattern.chars().count() == 1,
            _ => false,
        }
    }
}

impl Stage {
    /// Takes a token or a part of one, and gives what is certain.
    fn take(&self, memory: &mut Memory, token: String, give: &mut dyn FnMut(String)) {
        let first = !std::mem::replace(&mut memory.begun, true);
        match &self.step {
            Step::Spaces => give(if first { token } else { format!(" {token}") }),
            // In an empty token even an empty pattern finds nothing.
            Step::Replace { pattern, content } if !token.is_empty() => give(token.replace(pattern, content)),
            Step::Replace { .. } | Step::Fuse => give(token),
            Step::Regex { replace, gave_up } => give(by_regex(replace, gave_up, token)),
            Step::ByteFallback => match byte_of(&token) {
                Some(byte) => memory.bytes.push(byte),
                None => {
                    give_bytes(&mut memory.bytes, give);
                    give(token);
                }
            },
            Step::Strip { content, start, stop } if self.joined => {
                strip_part(memory, &token, *content, (*start, *stop), give);
            }
            Step::Strip { content, start, stop } => give(strip(&token, *content, *start, *stop).to_owned()),
            Step::WordPiece { prefix, clean } => {
                let token = match (first, token.strip_prefix(prefix.as_str())) {
                    (true, _) => token,
                    (false, Some(rest)) => rest.to_owned(),
                    (false, None) => format!(" {token}"),
                };
                give(if *clean { cleanup(&token) } else { token });
            }
            Step::Metaspace { replacement, drops_first } => {
                // All parts of a joined token are of the first.
                let with = if *drops_first && (first || self.joined) { "" } else { " " };
                give(token.replace(*replacement, with));
            }
            Step::Bpe { suffix } => {
                if let Some(before) = memory.text.take() {
                    give(before.replace(suffix, " "));
                }
                // The suffix of the last token is no space.
                match token.contains(suffix) {
                    true => memory.text = Some(token),
                    false => give(token),
                }
            }
            Step::Ctc { pad, delimiter, clean } => {
                if memory.text.as_ref() == Some(&token) {
                    return;
                }
                let mut text = token.replace(pad, "");
                if *clean {
                    text = cleanup(&text).replace(delimiter, " ");
                }
                memory.text = Some(token);
                if !text.is_empty() {
                    give(text);
                }
            }
            Step::ByteLevel => {
                match token.chars().map(|char| BYTES.get(&char).copied()).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => memory.bytes.extend(bytes),
                    None => memory.bytes.extend(token.as_bytes()),
                }
                give(whole_characters(&mut memory.bytes));
            }
            Step::Gather => memory.text.get_or_insert_default().push_str(&token),
        }
    }

    /// Gives what it holds back.
    fn give(&self, memory: &mut Memory, at: At, give: &mut dyn FnMut(String)) {
        match &self.step {
            Step::ByteFallback => give_bytes(&mut memory.bytes, give),
            Step::ByteLevel if !memory.bytes.is_empty() => {
                memory.bytes.clear();
                give(REPLACEMENT.to_owned());
            }
            Step::Bpe { suffix } => {
                if let Some(last) = memory.text.take() {
                    give(last.replace(suffix, if at == At::End { "" } else { " " }));
                }
            }
            Step::Strip { .. } => {
                // At the end, what is held back is what is stripped.
                if let Some(held) = memory.text.take().filter(|_| at == At::Seam) {
                    give(held);
                }
            }
            Step::Gather => {
                let text = memory.text.take().unwrap_or_default();
                // A text that goes on is not whole: what follows is taken for itself.
                if at == At::End {
                    give(text);
                }
            }
            _ => {}
        }
    }
}

/// How long a regular expression may look at one token.
const REGEX_TIME: Duration = Duration::from_secs(2);

/// What a regular expression makes of a token: nothing new, once it took too long or gave up.
fn by_regex(replace: &Arc<DecoderWrapper>, gave_up: &AtomicBool, token: String) -> String {
    if gave_up.load(Ordering::Relaxed) {
        return token;
    }
    let (work, given) = (Arc::clone(replace), token.clone());
    match guard::run(REGEX_TIME, move || work.decode_chain(vec![given])) {
        Ok(Ok(replaced)) => replaced.concat(),
        _ => {
            gave_up.store(true, Ordering::Relaxed);
            token
        }
    }
}

/// The byte that a token of the form `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Gives a run of bytes as the text that they are, or as a replacement for each.
fn give_bytes(bytes: &mut Vec<u8>, give: &mut dyn FnMut(String)) {
    match String::from_utf8(std::mem::take(bytes)) {
        Ok(text) if text.is_empty() => {}
        Ok(text) => give(text),
        Err(error) => (0..error.as_bytes().len()).for_each(|_| give(REPLACEMENT.to_owned())),
    }
}

/// Takes the characters from the front of `bytes`; one that may still become whole stays.
fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let (mut text, mut taken) = (String::new(), 0);
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text += chunk.valid();
        taken += chunk.valid().len();
        let wrong = chunk.invalid();
        let unfinished = std::str::from_utf8(wrong).is_err_and(|error| error.error_len().is_none());
        if wrong.is_empty() || (unfinished && chunks.peek().is_none()) {
            continue;
        }
        text += REPLACEMENT;
        taken += wrong.len();
    }
    bytes.drain(..taken);
    text
}

/// A token without as many as `start` and `stop` characters `content` at its ends.
fn strip(token: &str, content: char, start: usize, stop: usize) -> &str {
    let cut = token.chars().take(start).take_while(|char| *char == content).count();
    let token = &token[cut * content.len_utf8()..];
    let cut = token.chars().rev().take(stop).take_while(|char| *char == content).count();
    &token[..token.len() - cut * content.len_utf8()]
}

/// [`strip`] for a token in parts: as much of its end is held back as would be stripped if it ended here.
fn strip_part(
    memory: &mut Memory,
    part: &str,
    content: char,
    (start, stop): (usize, usize),
    give: &mut dyn FnMut(String),
) {
    let mut rest = part;
    while memory.stripped < start
        && let Some(after) = rest.strip_prefix(content)
    {
        memory.stripped += 1;
        rest = after;
    }
    if !rest.is_empty() {
        // Only the very start is stripped.
        memory.stripped = start;
    }
    let mut held = memory.text.take().unwrap_or_default();
    held += rest;
    let certain = strip(&held, content, 0, stop).len();
    memory.text = Some(held.split_off(certain));
    give(held);
}

/// The bytes that the characters of a byte-level vocabulary stand for: the printable ones of Latin-1 for themselves, those
/// from U+0100 for the others in their order.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255).filter(|byte| !printable(*byte));
    let others = (0x100..).filter_map(char::from_u32).zip(others);
    (0..=255).filter(|byte| printable(*byte)).map(|byte| (char::from(byte), byte)).chain(others).collect()
});
