//! The keys and values of one layer on the GPU.

use super::{
    CacheLayout,
    cache_layout::{CacheWindow, Run, Sections, Window},
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
    /// Empty, cut so that it keeps its windows when it grows to `most` slots: those of slots that it does not have yet come then.
    pub fn new(gpu: &Gpu, layout: CacheLayout, most: u32) -> Self {
        let grown = CacheLayout { capacity: most.max(layout.capacity), ..layout };
        let windows = Self::windows_on(gpu, &grown).into_iter().filter_map(|window| {
            let slots = window.slots.min(layout.capacity.saturating_sub(window.first_slot));
            let window = Window { slots, ..window };
            let there = slots > 0 || window.first_slot == 0;
            there
                .then(|| CachedWindow { window, buffer: Buffer::new(gpu, "cache", layout.bytes_of(&window)) })
        });
        Self { layout, windows: windows.collect() }
    }

    /// How a cache of this layout is cut on a device.
    pub fn sections_on(gpu: &Gpu, layout: &CacheLayout) -> Sections {
        sections_of(Self::windows_on(gpu, layout).iter())
    }

    fn windows_on(gpu: &Gpu, layout: &CacheLayout) -> Vec<Window> {
        let capabilities = gpu.capabilities();
        layout.windows(capabilities.max_binding.min(capabilities.max_buffer))
    }

    /// How many sections it has: more than one where its windows are cut by slots.
    pub fn sections(&self) -> u32 {
        sections_of(self.windows.iter().map(|cached| &cached.window)).count
    }

    /// Slots of the longest section.
    pub(super) fn section_slots(&self) -> u32 {
        sections_of(self.windows.iter().map(|cached| &cached.window)).slots
    }

    /// Copies of the first `count` slots of sequence `from` into those of `to`'s sequence `into`, where `to` is cut alike by heads
    /// and slots.
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
        let windows: Vec<&Window> = self.of_sequence(0).map(|cached| &cached.window).collect();
        let mut pieces = [Vec::new(), Vec::new()];
        let mut at = 0;
        for section in windows.chunk_by(|a, b| a.first_slot == b.first_slot) {
            let slots = count.saturating_sub(section[0].first_slot).min(section[0].slots) as usize;
            // Where each window's keys and values start, and the bytes of a slot.
            let mut rows = [Vec::new(), Vec::new()];
            for window in section {
                for (half, run) in self.layout.runs(window, 0, 0, count).iter().enumerate() {
                    rows[half].push((at, run.bytes as usize / slots));
                    at += run.bytes as usize;
                }
            }
            for (pieces, rows) in pieces.iter_mut().zip(&rows) {
                let of_slot =
                    |slot| rows.iter().map(move |&(start, row)| start + slot * row..start + (slot + 1) * row);
                pieces.extend((0..slots).flat_map(of_slot));
            }
        }
        pieces.concat()
    }

    /// The windows that hold a sequence, by slots, then by heads.
    fn of_sequence(&self, sequence: u32) -> impl Iterator<Item = &CachedWindow> {
        self.windows.iter().filter(move |cached| {
            let Window { first_sequence, sequences, .. } = cached.window;
            (first_sequence..first_sequence + sequences).contains(&sequence)
        })
    }

    /// What a dispatch binds of each window.
    pub(super) fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        let places = |window: &Window| {
            [window.sequences, window.slots, window.heads].map(u64::from).iter().product::<u64>()
        };
        let all = self.windows.iter().map(|cached| places(&cached.window)).sum();
        let (sections, section_slots) = (self.sections(), self.section_slots().max(1));
        self.windows.iter().scan(0, move |before, CachedWindow { window, buffer }| {
            let share = Share { before: *before, own: places(window), all };
            *before += share.own;
            let window = self.layout.params(window, window.first_slot / section_slots, sections);
            Some(Binding { window, buffer, share })
        })
    }
}

/// One window, as a dispatch takes it.
pub(super) struct Binding<'a> {
    pub window: CacheWindow,
    pub buffer: &'a Buffer,
    pub share: Share,
}

/// Heads of slots of sequences in a window, of those in all and of those before it.
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
        let up_to = |places: u64| u128::from(n) * u128::from(places) / u128::from(self.all.max(1));
        (up_to(self.before + self.own) - up_to(self.before)) as u64
    }
}

/// The sections among the windows of a cache: each begins with the first head of the first sequence.
fn sections_of<'a>(windows: impl Iterator<Item = &'a Window>) -> Sections {
    let firsts = windows.filter(|window| window.first_sequence == 0 && window.first_head == 0);
    firsts.fold(Sections { count: 0, slots: 0 }, |sections, window| Sections {
        count: sections.count + 1,
        slots: sections.slots.max(window.slots),
    })
}
