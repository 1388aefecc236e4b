//! How families read a config's sizes: every number has a largest value that is believed, and every rule that several
//! families have stands here once.

use crate::{
    Result,
    layers::Heads,
    weights::{
        Fields,
        limits::{MOST_EXPERTS, MOST_HEADS, MOST_LAYERS, MOST_WIDE},
    },
};

impl Fields<'_> {
    /// A width, a vocabulary or a context.
    pub(super) fn wide(&self, names: &[&'static str]) -> Result<u32> {
        self.size(names, MOST_WIDE).map(|n| n as u32)
    }

    /// As [`wide`](Self::wide), if present.
    pub(super) fn optional_wide(&self, names: &[&'static str]) -> Result<Option<u32>> {
        Ok(self.optional_size(names, MOST_WIDE)?.map(|n| n as u32))
    }

    /// The hidden width of an MLP, if present; 0 where blocks have none.
    pub(super) fn optional_hidden(&self, names: &[&'static str]) -> Result<Option<u32>> {
        Ok(self.optional_count(names, MOST_WIDE)?.map(|n| n as u32))
    }

    /// Layers of a stack.
    pub(super) fn layers(&self, names: &[&'static str]) -> Result<u32> {
        self.size(names, MOST_LAYERS).map(|n| n as u32)
    }

    /// Heads of a layer.
    pub(super) fn heads(&self, names: &[&'static str]) -> Result<u32> {
        self.size(names, MOST_HEADS).map(|n| n as u32)
    }

    /// As [`heads`](Self::heads), if present.
    pub(super) fn optional_heads(&self, names: &[&'static str]) -> Result<Option<u32>> {
        Ok(self.optional_size(names, MOST_HEADS)?.map(|n| n as u32))
    }

    /// Experts of a layer, or those that a token uses.
    pub(super) fn experts(&self, names: &[&'static str]) -> Result<u32> {
        self.size(names, MOST_EXPERTS).map(|n| n as u32)
    }

    /// As [`experts`](Self::experts), if present.
    pub(super) fn optional_experts(&self, names: &[&'static str]) -> Result<Option<u32>> {
        Ok(self.optional_size(names, MOST_EXPERTS)?.map(|n| n as u32))
    }

    /// A norm's epsilon.
    pub(super) fn epsilon(&self, names: &[&'static str]) -> Result<f32> {
        self.number(names, 1e-12..=0.1)
    }

    /// Whether the output head is the embedding table; not, where the config does not say.
    pub(super) fn tied(&self) -> Result<bool> {
        Ok(self.flag("tie_word_embeddings")?.unwrap_or(false))
    }

    /// A token that the vocabulary must have.
    pub(super) fn known_token(&self, name: &str, id: Option<&i64>, vocab: u32) -> Result<u32> {
        match id {
            Some(&id) if (0..i64::from(vocab)).contains(&id) => Ok(id as u32),
            Some(id) => Err(self.bad(name, id, format!("below vocab_size, which is {vocab}"))),
            None => Err(self.bad(name, "no such field", "a token id")),
        }
    }

    /// `num_attention_heads` in equal groups over `num_key_value_heads`, else over as many.
    pub(super) fn grouped_heads(&self, width: u32) -> Result<Heads> {
        let query = self.heads(&["num_attention_heads"])?;
        let kv = self.optional_heads(&["num_key_value_heads"])?.unwrap_or(query);
        if !query.is_multiple_of(kv) {
            let expected = format!("a divisor of num_attention_heads, which is {query}");
            return Err(self.bad("num_key_value_heads", kv, expected));
        }
        Ok(Heads { query, kv, dim: self.head_dim(width, query)? })
    }

    /// `head_dim`, else an equal part of `hidden_size`.
    pub(super) fn head_dim(&self, width: u32, heads: u32) -> Result<u32> {
        match self.optional_wide(&["head_dim"])? {
            Some(head_dim) => Ok(head_dim),
            None if width.is_multiple_of(heads) => Ok(width / heads),
            None => {
                let expected = format!("a multiple of num_attention_heads, {heads}");
                Err(self.bad("hidden_size", width, expected))
            }
        }
    }
}
