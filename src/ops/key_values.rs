//! The keys and values of one layer on the GPU.

use super::{
    CacheLayout,
    cache_layout::{CacheWindow, Run, Window},
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
        let cached = |window: Window| CachedWindow {
            window,
            buffer: Buffer::new(gpu, "cache", layout.bytes_of(&window)),
        };
        Self { layout, windows: grown.windows(most_bytes).into_iter().map(cached).collect() }
    }

    /// Copies of the first `count` slots of sequence `from` into those of `to`'s sequence `into`, where `to` is cut alike by heads.
    pub fn copies<'a>(&'a self, from: u32, to: &'a Self, into: u32, count: u32) -> Vec<BufferCopy<'a>> {
        let pairs = self.ranges(from, count).into_iter().zip(to.ranges(into, count));
        pairs
            .map(|((from, from_offset, bytes), (to, to_offset, _))| BufferCopy {
                from,
                from_offset,
                to,
                to_offset,
                bytes,
            })
            .collect()
    }

    /// Where a sequence's first `count` slots lie: a buffer, the first byte, how many, window after window.
    pub fn ranges(&self, sequence: u32, count: u32) -> Vec<(&Buffer, u64, u64)> {
        let mut ranges = Vec::new();
        for CachedWindow { window, buffer } in self.of_sequence(sequence) {
            let runs = self.layout.runs(window, sequence, 0, count);
            ranges.extend(runs.into_iter().map(|Run { offset, bytes }| (buffer, offset, bytes)));
        }
        ranges
    }

    /// What [`ranges`](Self::ranges) of `count` slots hold, in the order of one window: keys, then values, slot by slot.
    pub fn in_order(&self, count: u32, by_window: &[u8]) -> Vec<u8> {
        let mut in_order = Vec::with_capacity(by_window.len());
        self.pieces(count).into_iter().for_each(|piece| in_order.extend_from_slice(&by_window[piece]));
        in_order
    }

    /// The reverse of [`in_order`](Self::in_order).
    pub fn by_window(&self, count: u32, in_order: &[u8]) -> Vec<u8> {
        let mut by_window = vec![0; in_order.len()];
        let mut rest = in_order;
        for piece in self.pieces(count) {
            let (now, later) = rest.split_at(piece.len());
            by_window[piece].copy_from_slice(now);
            rest = later;
        }
        by_window
    }

    /// Where the pieces of one window's order lie among bytes that come window after window.
    fn pieces(&self, count: u32) -> Vec<std::ops::Range<usize>> {
        let runs: Vec<Vec<Run>> =
            self.of_sequence(0).map(|cached| self.layout.runs(&cached.window, 0, 0, count)).collect();
        let mut starts = Vec::new();
        let mut at = 0;
        for runs in &runs {
            starts.push(at);
            at += runs.iter().map(|run| run.bytes as usize).sum::<usize>();
        }
        let halves = runs.first().map_or(0, Vec::len);
        let mut pieces = Vec::new();
        for half in 0..halves {
            for slot in 0..count as usize {
                for (runs, start) in runs.iter().zip(&starts) {
                    let before: usize = runs[..half].iter().map(|run| run.bytes as usize).sum();
                    let row = runs[half].bytes as usize / count as usize;
                    let from = start + before + slot * row;
                    pieces.push(from..from + row);
                }
            }
        }
        pieces
    }

    /// The windows that hold a sequence, by heads.
    fn of_sequence(&self, sequence: u32) -> impl Iterator<Item = &CachedWindow> {
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
