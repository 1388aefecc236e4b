//! Sequences that go on from others' keys and values.

use super::{Kernel, KeyValues, key_values::CachedWindow, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::CACHE_REORDER, Params::layout);

uniform! {
    struct Params {
        row_quads: u32,
        filled: u32,
        slots: u32,
        sequences: u32,
        from_at: u32,
        from_first: u32,
        from_sequences: u32,
        to_at: u32,
        to_first: u32,
        to_sequences: u32,
    }
}

/// Sequence `s` of `to` becomes sequence `parents[s]` of `from`, in its first `filled` slots. Both have the same layout.
pub struct CacheReorder<'a> {
    /// `[sequences]` u32
    pub parents: &'a Buffer,
    pub from: &'a KeyValues,
    pub to: &'a KeyValues,
    pub filled: u32,
}

impl CacheReorder<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        for to in &self.to.windows {
            let place = |cached: &CachedWindow| (cached.window.first_slot, cached.window.first_head);
            for from in self.from.windows.iter().filter(|from| place(from) == place(to)) {
                self.copy(recorder, from, to);
            }
        }
    }

    /// Keys, then values, from one window into another of the same slots and heads.
    fn copy(&self, recorder: &mut Recorder, from: &CachedWindow, to: &CachedWindow) {
        let layout = &self.from.layout;
        // Where the first sequence starts, and how long a slot is, in units of four words, whatever they hold.
        let runs = |CachedWindow { window, .. }: &CachedWindow| {
            layout.runs(window, window.first_sequence, window.first_slot, 1)
        };
        let filled = self.filled.saturating_sub(to.window.first_slot).min(to.window.slots);
        for (source, target) in runs(from).into_iter().zip(runs(to)) {
            let quads = |bytes: u64| (bytes / 16) as u32;
            let params = Params {
                row_quads: quads(source.bytes),
                filled,
                slots: to.window.slots,
                sequences: layout.sequences,
                from_at: quads(source.offset),
                from_first: from.window.first_sequence,
                from_sequences: from.window.sequences,
                to_at: quads(target.offset),
                to_first: to.window.first_sequence,
                to_sequences: to.window.sequences,
            };
            let groups = [(params.row_quads * filled).div_ceil(64), to.window.sequences, 1];
            let copied = u64::from(to.window.sequences) * u64::from(filled) * source.bytes;
            recorder.dispatch(
                &params,
                Dispatch {
                    // Read and written.
                    cache_bytes: 2 * copied,
                    ..Dispatch::new(&KERNEL, &[self.parents, &from.buffer, &to.buffer], groups)
                },
            );
        }
    }
}
