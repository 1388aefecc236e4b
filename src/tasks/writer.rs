//! The text of a sequence, as its tokens come, up to a stop string.

#[cfg(feature = "tokenizer")]
use super::TextStream;

/// Without tokenizers there are none.
#[cfg(not(feature = "tokenizer"))]
#[derive(Clone)]
pub(super) struct TextStream<'a>(std::convert::Infallible, std::marker::PhantomData<&'a ()>);

#[cfg(not(feature = "tokenizer"))]
impl TextStream<'_> {
    fn push(&mut self, _: u32) -> String {
        match self.0 {}
    }

    fn finish(&mut self) -> String {
        match self.0 {}
    }
}

/// Writes the text of one sequence. What may be the start of a stop string is held back until it is known to be none; neither a
/// stop string nor what comes behind it is ever given out.
pub(super) struct Writer<'a> {
    /// None where nobody knows the text of an id.
    stream: Option<TextStream<'a>>,
    stops: &'a [String],
    /// Tokens without a text, whatever the tokenizer says.
    silent: &'a [u32],
    /// Whether tokens of the prompt have theirs, too.
    reads: bool,
    /// Certain, and perhaps the start of a stop string.
    held: String,
    /// All that was given out, the prompt's text aside.
    text: String,
    stopped: bool,
}

impl<'a> Writer<'a> {
    /// Goes on with `stream`, up to the first of `stops`.
    pub fn new(stream: Option<TextStream<'a>>, stops: &'a [String]) -> Self {
        let (held, text) = (String::new(), String::new());
        Self { stream, stops, silent: &[], reads: false, held, text, stopped: false }
    }

    /// Leaves these tokens without a text.
    #[cfg(feature = "chat")]
    pub fn without(mut self, silent: &'a [u32]) -> Self {
        self.silent = silent;
        self
    }

    /// Gives the prompt's tokens their text as they are [`read`](Self::read).
    pub fn reading(mut self, reads: bool) -> Self {
        self.reads = reads;
        self
    }

    /// The text of a token of the prompt, where that is wanted; `last` if nothing comes behind it.
    pub fn read(&mut self, id: u32, last: bool) -> String {
        let Some(stream) = self.stream.as_mut().filter(|_| self.reads) else { return String::new() };
        let mut text = stream.push(id);
        if last {
            text += &stream.finish();
        }
        text
    }

    /// What a token would add, were it the last.
    pub fn alternative(&self, id: u32) -> String {
        let Some(mut stream) = self.stream.clone() else { return String::new() };
        stream.push(id) + &stream.finish()
    }

    /// Adds a token; what became certain of the text.
    pub fn push(&mut self, id: u32) -> String {
        match &mut self.stream {
            Some(stream) if !self.silent.contains(&id) => {
                let more = stream.push(id);
                self.give_out(&more, false)
            }
            _ => String::new(),
        }
    }

    /// Ends the text; what was held back of it.
    pub fn end(&mut self) -> String {
        let more = self.stream.as_mut().map(TextStream::finish).unwrap_or_default();
        self.give_out(&more, true)
    }

    /// Whether the text came to a stop string.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The whole text, ended.
    pub fn into_text(mut self) -> String {
        self.end();
        self.text
    }

    fn give_out(&mut self, more: &str, all: bool) -> String {
        if self.stopped {
            return String::new();
        }
        self.held += more;
        let certain = match stop_in(&self.held, self.stops) {
            Some(start) => {
                self.stopped = true;
                self.held.truncate(start);
                start
            }
            None if all => self.held.len(),
            None => start_of_stop(&self.held, self.stops),
        };
        let given: String = self.held.drain(..certain).collect();
        self.text += &given;
        given
    }
}

/// Where the stop string begins that is complete first; of those that are complete together, the longest. So it does not matter
/// in which pieces a text comes.
fn stop_in(text: &str, stops: &[String]) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| {
        let start = text.find(stop.as_str())?;
        Some((start + stop.len(), start))
    });
    found.min().map(|(_, start)| start)
}

/// Where the end of a text begins that may be the start of a stop string; the text's length where none may.
fn start_of_stop(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    let first = text.len().saturating_sub(longest.saturating_sub(1));
    let may_stop =
        |&start: &usize| text.get(start..).is_some_and(|end| stops.iter().any(|stop| stop.starts_with(end)));
    (first..text.len()).find(may_stop).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given out of `pieces`, one by one, and at the end; and whether a stop string came.
    fn given(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut writer = Writer::new(None, &stops);
        let mut given: Vec<String> = pieces.iter().map(|piece| writer.give_out(piece, false)).collect();
        given.push(writer.end());
        assert_eq!(given.concat(), writer.text);
        (given, writer.stopped)
    }

    #[test]
    fn what_may_begin_a_stop_string_waits() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            given(&["STOP"], &["a S", "T", "OR ST", "OP b"]),
            (words(&["a ", "", "STOR ", "", ""]), true)
        );
        // What was held back is text where the text ends.
        assert_eq!(given(&["STOP"], &["a STO"]), (words(&["a ", "STO"]), false));
        // A beginning within a beginning.
        assert_eq!(given(&["aab"], &["a", "a", "a", "b", "c"]), (words(&["", "", "a", "", "", ""]), true));
        // Characters of several bytes are held back whole.
        assert_eq!(given(&["→é"], &["x→", "è→", "é!"]), (words(&["x", "→è", "", ""]), true));
        assert_eq!(given(&["é"], &["è", "ê"]), (words(&["è", "ê", ""]), false));
        assert_eq!(given(&[], &["a", "b"]), (words(&["a", "b", ""]), false));
    }

    /// The oracle goes through the text character by character.
    #[test]
    fn a_text_ends_at_the_same_place_in_any_pieces() {
        let stops = ["abcd", "bc", "xbc", "→a", "dd→"];
        let texts = ["zabcd", "xxbcb", "aabbcc", "a→a", "ddd→", "abab", "→→", "dd", "bxbc"];
        for text in texts {
            let ends = text.char_indices().map(|(at, char)| at + char.len_utf8());
            let end = ends.map(|end| &text[..end]).find(|text| stops.iter().any(|stop| text.ends_with(stop)));
            let longest = |text: &str| {
                let ending = stops.iter().filter(|stop| text.ends_with(**stop)).map(|stop| stop.len());
                ending.max().unwrap_or(0)
            };
            let expected = end.map_or(text, |text| &text[..text.len() - longest(text)]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            for cuts in 0..1 << (chars.len() - 1) {
                let mut pieces = vec![String::new()];
                for (index, char) in chars.iter().enumerate() {
                    pieces.last_mut().unwrap().push_str(char);
                    if cuts >> index & 1 == 1 {
                        pieces.push(String::new());
                    }
                }
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (given, stopped) = given(&stops, &pieces);
                assert_eq!((given.concat().as_str(), stopped), (expected, end.is_some()), "{pieces:?}");
            }
        }
    }
}
