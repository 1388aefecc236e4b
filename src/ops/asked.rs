//! Heads, and tokens of a step, that someone asked for; the twin of `shaders/shared/asked.wgsl`.

use crate::gpu::{Buffer, Gpu};

/// Which heads of which tokens.
pub struct Asked {
    pub(super) words: Buffer,
    heads: u32,
    tokens: u32,
    most_tokens: u32,
}

impl Asked {
    /// These heads, and room for `most_tokens` tokens of a step, none so far.
    pub fn new(gpu: &Gpu, heads: &[u32], most_tokens: u32) -> Self {
        let words = Buffer::new(gpu, "asked", Self::bytes(heads.len() as u32, most_tokens));
        words.write(0, heads);
        Self { words, heads: heads.len() as u32, tokens: 0, most_tokens }
    }

    /// Bytes it takes.
    pub fn bytes(heads: u32, most_tokens: u32) -> u64 {
        4 * (u64::from(heads) + u64::from(most_tokens))
    }

    /// Asks for other tokens of a step, as many as there is room for.
    pub fn set_tokens(&mut self, tokens: &[u32]) {
        self.tokens = (tokens.len() as u32).min(self.most_tokens);
        self.words.write(4 * u64::from(self.heads), &tokens[..self.tokens as usize]);
    }

    /// Bytes of GPU memory that it holds.
    pub fn held(&self) -> u64 {
        self.words.bytes()
    }

    /// How many heads.
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// How many tokens.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }
}
