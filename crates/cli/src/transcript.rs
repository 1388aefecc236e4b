//! What happens to tokens as they come: text is made of them, shown, timed and kept.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use headwise::Token;

use super::{failure::Failure, heads::Painter, output::fit_to_print};

/// What tokens are shown as: their text, or numbers where there is no tokenizer.
pub enum Words {
    Text,
    Ids { separator: &'static str },
}

impl Words {
    pub fn ids() -> Self {
        Self::Ids { separator: "" }
    }

    /// A token that adds `text` to its sequence.
    pub fn push(&mut self, id: u32, text: &str) -> String {
        match self {
            Self::Text => text.to_owned(),
            Self::Ids { separator } => format!("{}{id}", std::mem::replace(separator, ",")),
        }
    }

    pub fn are_text(&self) -> bool {
        matches!(self, Self::Text)
    }
}

/// One run of `generate`, shown on stdout token by token.
pub struct Transcript {
    words: Words,
    painter: Option<Painter>,
    /// What comes before the first token. Printed with it, so that a prompt which is refused prints nothing.
    head: String,
    /// Nothing is shown as it comes.
    silent: bool,
    terminal: bool,
    start: Instant,
    /// When the prompt was done: its last token reported, or the first new one.
    prefilled: Option<Instant>,
    last: Instant,
    /// The tokens reported, with their text; those of the prompt only with routes.
    pub tokens: Vec<Token>,
}

impl Transcript {
    /// Starts the clock.
    pub fn new(words: Words, painter: Option<Painter>, head: String, silent: bool) -> Self {
        let start = Instant::now();
        let terminal = io::stdout().is_terminal();
        let tokens = Vec::new();
        Self { words, painter, head, silent, terminal, start, prefilled: None, last: start, tokens }
    }

    /// Takes the next token.
    pub fn add(&mut self, token: &Token) -> Result<(), Failure> {
        self.last = Instant::now();
        if token.prompt || self.prefilled.is_none() {
            self.prefilled = Some(self.last);
        }
        let text = self.words.push(token.id, &token.text);
        let shown = match &self.painter {
            Some(painter) => painter.paint(&fit_to_print(&text, self.terminal), token.routes.as_ref()),
            None => fit_to_print(&text, self.terminal),
        };
        let mut token = token.clone();
        token.text = text;
        self.tokens.push(token);
        self.show(&shown)
    }

    /// Ends the text, which is `text` where it is one.
    pub fn finish(mut self, text: &str) -> Result<Self, Failure> {
        if self.prefilled.is_none() {
            // Nothing new was wanted, and nothing of the prompt.
            self.last = Instant::now();
        }
        // There is more where the user ended it.
        let shown: usize = self.new_tokens().map(|token| token.text.len()).sum();
        let rest = if self.words.are_text() { text.get(shown..).unwrap_or_default() } else { "" };
        let shown = fit_to_print(rest, self.terminal);
        if let Some(last) = self.tokens.last_mut() {
            last.text += rest;
        }
        self.show(&(shown + "\n"))?;
        Ok(self)
    }

    fn show(&mut self, text: &str) -> Result<(), Failure> {
        if self.silent {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let head = std::mem::take(&mut self.head);
        out.write_all(head.as_bytes())?;
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// The new tokens.
    pub fn new_tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(|token| !token.prompt)
    }

    /// The new text; none where the model has no tokenizer.
    pub fn new_text(&self) -> Option<String> {
        self.words.are_text().then(|| self.new_tokens().map(|token| token.text.as_str()).collect())
    }

    /// How fast it went, for a prompt of `prompt` tokens.
    pub fn speeds(&self, prompt: usize) -> Speeds {
        let prefilled = self.prefilled.unwrap_or(self.last);
        // Without routes, the first new token came with the prompt.
        let with_prompt = usize::from(self.painter.is_none());
        Speeds {
            prefill: Speed { tokens: prompt, time: prefilled - self.start },
            decode: Speed {
                tokens: self.new_tokens().count().saturating_sub(with_prompt),
                time: self.last - prefilled,
            },
        }
    }
}

/// Tokens and the time they took.
#[derive(Clone, Copy)]
pub struct Speed {
    pub tokens: usize,
    pub time: Duration,
}

impl Speed {
    /// Tokens per second; 0 for none.
    pub fn per_second(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tokens, seconds) = (self.tokens, self.time.as_secs_f64());
        write!(f, "{:.1} tokens/s ({tokens} in {seconds:.2} s)", self.per_second())
    }
}

/// The two phases of generation.
#[derive(Clone, Copy)]
pub struct Speeds {
    pub prefill: Speed,
    pub decode: Speed,
}

impl fmt::Display for Speeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prefill {}; decode {}", self.prefill, self.decode)
    }
}
