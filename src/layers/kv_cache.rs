//! The key/value cache of a session.

use crate::{
    gpu::{Buffer, BufferCopy, Gpu, Recorder},
    layers::{HeadMixtureSpec, PositionEncoding},
    ops::{CacheLayout, CachePrecision, CacheReorder, KeyValues, Sections, rope_angles},
};

/// The room a cache has, and how it holds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    pub sequences: u32,
    /// Slots of each sequence.
    pub capacity: u32,
    /// Slots of each sequence to which it may grow.
    pub most: u32,
    pub precision: CachePrecision,
}

impl CacheSize {
    /// Where a layer's keys and values lie in a cache of this size.
    pub fn layout(&self, spec: &HeadMixtureSpec) -> CacheLayout {
        spec.cache_layout(self.sequences, self.capacity, self.precision)
    }

    /// Where they lie when the cache has grown as far as it may.
    fn grown_layout(&self, spec: &HeadMixtureSpec) -> CacheLayout {
        Self { capacity: self.most.max(self.capacity), ..*self }.layout(spec)
    }

    /// How the layers' caches are cut then.
    pub fn sections<'a>(&self, gpu: &Gpu, layers: impl Iterator<Item = &'a HeadMixtureSpec>) -> Sections {
        let each = layers.map(|spec| KeyValues::sections_on(gpu, &self.grown_layout(spec)));
        each.reduce(Sections::or).unwrap_or_default()
    }

    /// Bytes of a layer's keys and values.
    fn bytes(&self, spec: &HeadMixtureSpec) -> u64 {
        self.layout(spec).bytes()
    }
}

/// Keys and values of one layer.
#[derive(Clone)]
pub struct LayerCache {
    pub kv: KeyValues,
    /// `[capacity, rotated / 2]` of (cos, sin), shared by the layers that rotate alike.
    pub angles: Buffer,
}

/// How long keys and values are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// By later steps.
    Kept,
    /// Within one step: layers of one size share their memory.
    OneStep,
}

/// Bytes of the table by which a layer turns, of so many positions: one binding.
pub fn angle_bytes(spec: &HeadMixtureSpec, positions: u32) -> u64 {
    match spec.position {
        PositionEncoding::Rope { channels, .. } => 8 * u64::from(positions) * u64::from(channels / 2),
        _ => 0,
    }
}

/// Tables of angles by what they depend on: channels that turn and the base.
#[derive(Default)]
struct Tables(Vec<(u32, f64, Buffer)>);

impl Tables {
    /// Bytes of the tables of `layers`, each of so many positions.
    fn bytes<'a>(layers: impl Iterator<Item = &'a HeadMixtureSpec>, positions: u32) -> u64 {
        let mut seen: Vec<(u32, f64)> = Vec::new();
        let mut all = 0;
        for spec in layers {
            if let PositionEncoding::Rope { theta, channels } = spec.position
                && !seen.contains(&(channels, theta))
            {
                seen.push((channels, theta));
                all += angle_bytes(spec, positions);
            }
        }
        all
    }

    fn of(&mut self, gpu: &Gpu, spec: &HeadMixtureSpec, positions: u32) -> Buffer {
        let PositionEncoding::Rope { theta, channels } = spec.position else {
            return Buffer::new(gpu, "no angles", 0);
        };
        let known = self.0.iter().find(|(dim, base, _)| (*dim, *base) == (channels, theta));
        if let Some((_, _, table)) = known {
            return table.clone();
        }
        let table = rope_angles(gpu, positions, channels, theta);
        self.0.push((channels, theta, table.clone()));
        table
    }
}

/// Empty keys and values of layers, with which of them share theirs.
struct Memory<'a> {
    gpu: &'a Gpu,
    size: CacheSize,
    use_: CacheUse,
    made: Vec<KeyValues>,
}

impl<'a> Memory<'a> {
    fn new(gpu: &'a Gpu, size: CacheSize, use_: CacheUse) -> Self {
        Self { gpu, size, use_, made: Vec::new() }
    }

    fn of(&mut self, spec: &HeadMixtureSpec) -> KeyValues {
        let layout = self.size.layout(spec);
        let alike = self.made.iter().find(|other| self.use_ == CacheUse::OneStep && other.layout == layout);
        if let Some(kv) = alike {
            return kv.clone();
        }
        let kv = KeyValues::new(self.gpu, layout, self.size.most);
        self.made.push(kv.clone());
        kv
    }
}

/// The cache of every layer.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
    size: CacheSize,
    use_: CacheUse,
}

impl KvCache {
    /// Bytes for `layers` with this room.
    pub fn bytes<'a>(
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        size: CacheSize,
        use_: CacheUse,
    ) -> u64 {
        let layouts = layers.map(|spec| size.layout(spec));
        match use_ {
            CacheUse::Kept => layouts.map(|layout| layout.bytes()).sum(),
            CacheUse::OneStep => {
                let shared: std::collections::HashSet<_> = layouts.collect();
                shared.iter().map(CacheLayout::bytes).sum()
            }
        }
    }

    /// Bytes for `layers` with this room, and for the angles by which they turn.
    pub fn all_bytes<'a>(
        layers: impl Iterator<Item = &'a HeadMixtureSpec> + Clone,
        size: CacheSize,
        use_: CacheUse,
    ) -> u64 {
        Self::bytes(layers.clone(), size, use_) + Tables::bytes(layers, size.capacity)
    }

    /// Allocates an empty cache.
    pub fn new<'a>(
        gpu: &Gpu,
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        size: CacheSize,
        use_: CacheUse,
    ) -> Self {
        let (mut tables, mut memory) = (Tables::default(), Memory::new(gpu, size, use_));
        let layers = layers
            .map(|spec| LayerCache { kv: memory.of(spec), angles: tables.of(gpu, spec, size.capacity) })
            .collect();
        Self { layers, size, use_ }
    }

    /// Positions it has room for, in each sequence.
    pub fn capacity(&self) -> u32 {
        self.size.capacity
    }

    /// Bytes that [`KvCache::grow`] takes on top of what there is: layers grow one after the other, so the last one has
    /// both its memories at once; what layers share, tables of angles too, is there until then.
    pub fn bytes_to_grow<'a>(
        &self,
        layers: impl Iterator<Item = &'a HeadMixtureSpec> + Clone,
        capacity: u32,
    ) -> u64 {
        let grown = CacheSize { capacity, ..self.size };
        if self.use_ == CacheUse::OneStep {
            return Self::all_bytes(layers, grown, self.use_);
        }
        let tables = Tables::bytes(layers.clone(), capacity);
        let sizes = layers.map(|spec| (self.size.bytes(spec), grown.bytes(spec)));
        let (more, largest) = sizes
            .fold((0, 0), |(more, largest), (now, then)| (more + then.saturating_sub(now), now.max(largest)));
        more + largest + tables
    }

    /// Makes room for `capacity` positions, at least as many as there are: larger buffers with what the present ones hold
    /// after all that was recorded, unless that is only of one step.
    pub fn grow<'a>(
        &mut self,
        recorder: &mut Recorder,
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        capacity: u32,
    ) {
        let gpu = recorder.gpu().clone();
        let filled = self.size.capacity;
        self.size.capacity = capacity;
        let (mut tables, mut memory) = (Tables::default(), Memory::new(&gpu, self.size, self.use_));
        let kept = if self.use_ == CacheUse::Kept { self.size.sequences } else { 0 };
        for (layer, spec) in self.layers.iter_mut().zip(layers) {
            let kv = memory.of(spec);
            let copies: Vec<_> =
                (0..kept).flat_map(|sequence| layer.kv.copies(sequence, &kv, sequence, filled)).collect();
            recorder.copy(&copies);
            // The old memory goes with the old value.
            *layer = LayerCache { kv, angles: tables.of(&gpu, spec, capacity) };
        }
    }

    /// Makes each sequence go on from another's first `filled` slots: `parents` `[sequences]` u32. The result
    /// stands in `spare`, a cache of the same layers, which changes places with this one. Both are [`CacheUse::Kept`].
    pub fn reorder(&mut self, recorder: &mut Recorder, parents: &Buffer, filled: u32, spare: &mut Self) {
        for (from, to) in self.layers.iter().zip(&spare.layers) {
            CacheReorder { parents, from: &from.kv, to: &to.kv, filled }.record(recorder);
        }
        std::mem::swap(self, spare);
    }
}

/// One sequence's keys and values.
impl KvCache {
    /// Bytes that [`KvCache::copy_sequence`] takes beside the cache.
    pub fn bytes_to_copy(&self, filled: u32) -> u64 {
        let ranges = self.layers.iter().flat_map(|layer| layer.kv.ranges(0, filled));
        ranges.map(|(_, _, bytes)| bytes).max().unwrap_or(0)
    }

    /// Copies a sequence's first `filled` slots to another sequence, after everything recorded so far.
    pub fn copy_sequence(&self, recorder: &mut Recorder, [from, to]: [u32; 2], filled: u32) {
        // WebGPU copies between different buffers only.
        let scratch = Buffer::new(recorder.gpu(), "cache.copy", self.bytes_to_copy(filled));
        let mut copies = Vec::new();
        for layer in &self.layers {
            for copy in layer.kv.copies(from, &layer.kv, to, filled) {
                copies.push(BufferCopy { to: &scratch, to_offset: 0, ..copy });
                copies.push(BufferCopy { from: &scratch, from_offset: 0, ..copy });
            }
        }
        recorder.copy_among(&copies);
    }
}
