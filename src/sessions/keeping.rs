//! What a sequence has read, elsewhere: in another sequence, or in bytes.

use super::{
    Session,
    saved::{Origin, seal},
};
use crate::{Error, Result, layers::CacheUse};

impl Session {
    /// Lets the sequence `to` go on from the first `positions` positions of `from`: a copy on the GPU, after everything
    /// recorded so far. What `to` had read, and what was sampled for it, is forgotten; `from` stays as it is.
    ///
    /// To write two texts from one prompt, fork before the prompt's last token and let both sequences read it.
    ///
    /// # Errors
    /// A sequence that the session does not have, `to` the same as `from`, a position behind `from`'s own, a model whose tokens
    /// see those that follow them, and [`Error::TooLarge`] where there is no room for one layer's copy.
    pub fn fork(&mut self, from: u32, to: u32, positions: u32) -> Result<()> {
        let now = self.position(from)?;
        self.sequence(to)?;
        self.check_kept("fork")?;
        if from == to {
            return Err(Error::argument("sequence", format!("{to}, itself"), "another one to copy to"));
        }
        if positions > now {
            return Err(Error::argument("position", positions, format!("at most {now}, where it is")));
        }
        let need = self.cache.bytes_to_copy(positions);
        self.recorder.gpu().plan("copying a sequence", need)?;
        self.cache.copy_sequence(&mut self.recorder, [from, to], positions);
        self.submit_recorded();
        self.move_to(to, positions);
        self.recorder.gpu().check("copying a sequence")
    }

    /// All that a sequence has read, as bytes, bit for bit; the format stands in `src/sessions/saved.rs`. Submits what was
    /// recorded. A token that was sampled and not read is not among it, nor are edits: these are the session's. Keys and values are
    /// as the edits made them that were set when they were read.
    ///
    /// # Errors
    /// A sequence that the session does not have, a model whose tokens see those that follow them, and what the GPU reports.
    pub async fn save(&mut self, sequence: u32) -> Result<Vec<u8>> {
        let positions = self.position(sequence)?;
        self.check_kept("save")?;
        self.submit_recorded();
        let mut saved = self.origin().header(positions);
        // One layer after the other: buffers for readbacks stay small.
        for layer in &self.cache.layers {
            let read = self.recorder.submit_and_read(&layer.kv.ranges(sequence, positions));
            saved.extend(layer.kv.in_order(positions, &read.wait("saving a sequence").await?));
        }
        seal(&mut saved);
        Ok(saved)
    }

    /// Lets a sequence go on from bytes that [`save`](Self::save) returned, in this session or in another of the same model
    /// with the same precisions. What it had read is forgotten. The same device then computes the same bits. What comes next is
    /// read under this session's edits ([`set_edits`](Self::set_edits)), whatever those were of the session that saved.
    ///
    /// # Errors
    /// A sequence that the session does not have; [`Error::BadFile`] for bytes of another model or precision, of more positions
    /// than the session has, or that are damaged; [`Error::TooLarge`] where the cache cannot grow.
    pub fn restore(&mut self, sequence: u32, saved: &[u8]) -> Result<()> {
        self.sequence(sequence)?;
        self.check_kept("restore")?;
        let (positions, mut rest) = self.origin().check(saved, self.layout.capacity)?;
        self.reserve(positions)?;
        self.submit_recorded();
        for layer in &self.cache.layers {
            let (now, later) = rest.split_at(layer.kv.layout.sequence_bytes(positions) as usize);
            let mut by_window = &layer.kv.by_window(positions, now)[..];
            for (buffer, offset, bytes) in layer.kv.ranges(sequence, positions) {
                let (now, later) = by_window.split_at(bytes as usize);
                buffer.write(offset, now);
                by_window = later;
            }
            rest = later;
        }
        self.move_to(sequence, positions);
        self.recorder.gpu().check("restoring a sequence")
    }

    fn origin(&self) -> Origin {
        Origin {
            model: self.model,
            weights: self.transformer.precision,
            cache: self.transformer.cache_precision,
            position_bytes: self.cache.layers.iter().map(|layer| layer.kv.layout.sequence_bytes(1)).sum(),
        }
    }

    /// Refuses a model that keeps no keys from one step to the next.
    fn check_kept(&self, wanted: &str) -> Result<()> {
        let stack = &self.transformer.spec.stack;
        match (stack.cache_use(), stack.whole_sequences()) {
            (CacheUse::OneStep, Some(why)) => {
                let found = format!("one that reads whole sequences: {why}");
                Err(Error::argument(
                    "model",
                    found,
                    format!("one that keeps what it has read, to {wanted} it"),
                ))
            }
            _ => Ok(()),
        }
    }
}
