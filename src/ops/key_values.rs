//! The keys and values of one layer on the GPU.

use super::{
    CacheLayout,
    cache_layout::{CacheWindow, Window},
};
use crate::gpu::{Buffer, BufferCopy, Gpu};

/// Keys and values, in as many windows as bindings are needed. Clones share the memory.
#[derive(Clone)]
pub struct KeyValues {
    pub layout: CacheLayout,
    pub windows: Vec<CachedWindow>,
}

/// The memory of one window.
#[derive(Clone)]
pub struct CachedWindow {
    pub window: Window,
    pub buffer: Buffer,
}

impl KeyValues {
    /// Empty, cut so that it keeps its windows when it grows to `most` slots.
    pub fn new(gpu: &Gpu, layout: CacheLayout, most: u32) -> Self {
        let capabilities = gpu.capabilities();
        let most_bytes = capabilities.max_binding.min(capabilities.max_buffer);
        let grown = CacheLayout { capacity: most.max(layout.capacity), ..layout };
        Self::in_windows(gpu, layout, &grown.windows(most_bytes))
    }

    /// Empty, in these windows.
    pub fn in_windows(gpu: &Gpu, layout: CacheLayout, windows: &[Window]) -> Self {
        let cached = |window: &Window| CachedWindow {
            window: *window,
            buffer: Buffer::new(gpu, "cache", layout.bytes_of(window)),
        };
        Self { layout, windows: windows.iter().map(cached).collect() }
    }

    /// Copies of the first `count` slots of sequence `from` into those of `to`'s sequence `into`, where `to` has the same windows
    /// by heads, and both sequences stand in windows of the same heads.
    pub fn copies<'a>(&'a self, from: u32, to: &'a Self, into: u32, count: u32) -> Vec<BufferCopy<'a>> {
        let mut copies = Vec::new();
        for (source, target) in self.of_sequence(from).zip(to.of_sequence(into)) {
            let runs = |layout: &CacheLayout, cached: &CachedWindow, sequence| {
                layout.runs(&cached.window, sequence, 0, count)
            };
            let pairs = runs(&self.layout, source, from).into_iter().zip(runs(&to.layout, target, into));
            copies.extend(pairs.map(|(old, new)| BufferCopy {
                from: &source.buffer,
                from_offset: old.offset,
                to: &target.buffer,
                to_offset: new.offset,
                bytes: old.bytes,
            }));
        }
        copies
    }

    /// The windows that hold a sequence, by heads.
    pub fn of_sequence(&self, sequence: u32) -> impl Iterator<Item = &CachedWindow> {
        self.windows.iter().filter(move |cached| {
            let Window { first_sequence, sequences, .. } = cached.window;
            (first_sequence..first_sequence + sequences).contains(&sequence)
        })
    }

    /// What a dispatch binds of each window.
    pub(super) fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        let heads = |window: &Window| u64::from(window.heads) * u64::from(window.sequences);
        let all = self.windows.iter().map(|cached| heads(&cached.window)).sum();
        self.windows.iter().scan(0, move |before, CachedWindow { window, buffer }| {
            let share = Share { before: *before, own: heads(window), all };
            *before += share.own;
            Some(Binding { window: self.layout.params(window), buffer, share })
        })
    }
}

/// One window, as a dispatch takes it.
pub(super) struct Binding<'a> {
    pub window: CacheWindow,
    pub buffer: &'a Buffer,
    pub share: Share,
}

/// Heads of sequences in a window, of those in all and of those before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    before: u64,
    own: u64,
    all: u64,
}

impl Share {
    /// Whether the window is the first.
    pub fn is_first(self) -> bool {
        self.before == 0
    }

    /// The part of `n` that falls to the window: those of all windows add up to `n`.
    pub fn of(self, n: u64) -> u64 {
        let up_to = |heads: u64| u128::from(n) * u128::from(heads) / u128::from(self.all.max(1));
        (up_to(self.before + self.own) - up_to(self.before)) as u64
    }
}
