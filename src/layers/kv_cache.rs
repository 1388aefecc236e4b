//! The key/value cache of a session.

use crate::{
    gpu::{Buffer, BufferCopy, Gpu, Recorder},
    layers::{HeadMixtureSpec, KvProjection, PositionEncoding},
    ops::{AttentionShape, CachePrecision, CacheReorder, rope_angles},
};

/// The room a cache has, and how it holds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    pub sequences: u32,
    /// Positions of each sequence.
    pub capacity: u32,
    pub precision: CachePrecision,
}

impl CacheSize {
    /// The attention of a layer over a cache of this size.
    pub fn shape(&self, spec: &HeadMixtureSpec) -> AttentionShape {
        AttentionShape { cache: self.precision, ..spec.attention_shape(self.sequences, self.capacity) }
    }

    /// Bytes of a layer's keys and values.
    fn bytes(&self, spec: &HeadMixtureSpec) -> u64 {
        let copies = if one_buffer(spec) { 1 } else { 2 };
        copies * self.shape(spec).cache_bytes()
    }
}

/// Keys and values of one layer, both `[sequences, capacity, kv_heads · head_dim]`, heads padded to whole eights; one
/// buffer where they are the same.
#[derive(Clone)]
pub struct LayerCache {
    pub k: Buffer,
    pub v: Buffer,
    /// `[capacity, rotated / 2]` of (cos, sin), shared by the layers that rotate alike.
    pub angles: Buffer,
    pub size: CacheSize,
}

/// How long keys and values are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// By later steps.
    Kept,
    /// Within one step: layers of one size share their memory.
    OneStep,
}

/// Whether keys are values.
fn one_buffer(spec: &HeadMixtureSpec) -> bool {
    spec.kv == KvProjection::Identity
}

/// What a layer's cache takes: bytes in all, and whether keys and values are one buffer. Where they are wanted within one
/// step, layers that take the same share it.
fn memory_of(spec: &HeadMixtureSpec, size: CacheSize) -> (u64, bool) {
    (size.bytes(spec), one_buffer(spec))
}

/// Tables of angles by what they depend on: channels that turn and the base.
#[derive(Default)]
struct Tables(Vec<(u32, f64, Buffer)>);

impl Tables {
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

/// Empty keys and values of one layer.
fn empty(gpu: &Gpu, spec: &HeadMixtureSpec, size: CacheSize) -> (Buffer, Buffer) {
    let bytes = size.shape(spec).cache_bytes();
    let k = Buffer::new(gpu, "cache.k", bytes);
    let v = if one_buffer(spec) { k.clone() } else { Buffer::new(gpu, "cache.v", bytes) };
    (k, v)
}

/// The cache of every layer.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Bytes for `layers` with this room.
    pub fn bytes<'a>(
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        size: CacheSize,
        use_: CacheUse,
    ) -> u64 {
        let memory = layers.map(|spec| memory_of(spec, size));
        match use_ {
            CacheUse::Kept => memory.map(|(bytes, _)| bytes).sum(),
            CacheUse::OneStep => {
                let shared: std::collections::BTreeSet<_> = memory.collect();
                shared.iter().map(|(bytes, _)| bytes).sum()
            }
        }
    }

    /// Allocates an empty cache.
    pub fn new<'a>(
        gpu: &Gpu,
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        size: CacheSize,
        use_: CacheUse,
    ) -> Self {
        let mut tables = Tables::default();
        let mut made: Vec<((u64, bool), LayerCache)> = Vec::new();
        let layers = layers
            .map(|spec| {
                let memory = memory_of(spec, size);
                let same = made.iter().find(|(other, _)| use_ == CacheUse::OneStep && *other == memory);
                let (k, v) = match same {
                    Some((_, cache)) => (cache.k.clone(), cache.v.clone()),
                    None => empty(gpu, spec, size),
                };
                let cache = LayerCache { k, v, angles: tables.of(gpu, spec, size.capacity), size };
                made.push((memory, cache.clone()));
                cache
            })
            .collect();
        Self { layers }
    }

    /// Positions it has room for, in each sequence.
    pub fn capacity(&self) -> u32 {
        self.layers.first().map_or(0, |layer| layer.size.capacity)
    }

    /// Bytes that [`KvCache::grow`] takes on top of what there is: layers grow one after the other, so the last one has
    /// both its buffers at once.
    pub fn bytes_to_grow<'a>(&self, layers: impl Iterator<Item = &'a HeadMixtureSpec>, capacity: u32) -> u64 {
        let sizes =
            self.layers.iter().zip(layers).map(|(layer, spec)| {
                (layer.size.bytes(spec), CacheSize { capacity, ..layer.size }.bytes(spec))
            });
        let (more, largest) = sizes
            .fold((0, 0), |(more, largest), (now, then)| (more + then.saturating_sub(now), now.max(largest)));
        more + largest
    }

    /// Makes room for `capacity` positions, at least as many as there are: larger buffers with what the present ones hold
    /// after all that was recorded. The cache is [`CacheUse::Kept`].
    pub fn grow<'a>(
        &mut self,
        recorder: &mut Recorder,
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        capacity: u32,
    ) {
        let gpu = recorder.gpu().clone();
        let mut tables = Tables::default();
        for (layer, spec) in self.layers.iter_mut().zip(layers) {
            let (old, size) = (layer.size, CacheSize { capacity, ..layer.size });
            let (k, v) = empty(&gpu, spec, size);
            let bytes = |size: CacheSize| size.shape(spec).cache_bytes() / u64::from(size.sequences.max(1));
            let (from, to) = (bytes(old), bytes(size));
            let mut copies = Vec::new();
            for sequence in 0..u64::from(old.sequences) {
                let place = |from_buffer, to_buffer| BufferCopy {
                    from: from_buffer,
                    from_offset: sequence * from,
                    to: to_buffer,
                    to_offset: sequence * to,
                    bytes: from,
                };
                copies.push(place(&layer.k, &k));
                if !one_buffer(spec) {
                    copies.push(place(&layer.v, &v));
                }
            }
            recorder.copy(&copies);
            // The old buffers go with the old value.
            *layer = LayerCache { k, v, angles: tables.of(&gpu, spec, capacity), size };
        }
    }

    /// Makes each sequence go on from another's first `positions` positions: `parents` `[sequences]` u32. The result
    /// stands in `spare`, a cache of the same layers, which changes places with this one. Both are [`CacheUse::Kept`].
    pub fn reorder<'a>(
        &mut self,
        recorder: &mut Recorder,
        specs: impl Iterator<Item = &'a HeadMixtureSpec>,
        parents: &Buffer,
        positions: u32,
        spare: &mut Self,
    ) {
        for ((from, to), spec) in self.layers.iter().zip(&spare.layers).zip(specs) {
            let shape = from.size.shape(spec);
            let mut copy = |from, to| CacheReorder { shape, parents, from, to, positions }.record(recorder);
            copy(&from.k, &to.k);
            if !one_buffer(spec) {
                copy(&from.v, &to.v);
            }
        }
        std::mem::swap(self, spare);
    }
}

/// Bytes of a cache: a buffer, the first byte, how many.
pub type CacheRange<'a> = (&'a Buffer, u64, u64);

/// One sequence's keys and values.
impl KvCache {
    /// Where a sequence's first `positions` positions lie, layer by layer: its keys, then its values where these are others,
    /// each position by position, the heads of a position in order, channels padded with zeros to whole eights.
    pub fn ranges<'a>(
        &self,
        specs: impl Iterator<Item = &'a HeadMixtureSpec>,
        sequence: u32,
        positions: u32,
    ) -> Vec<Vec<CacheRange<'_>>> {
        let layers = self.layers.iter().zip(specs);
        layers
            .map(|(layer, spec)| {
                let row = layer.size.shape(spec).cache_row_bytes();
                let first = u64::from(sequence) * u64::from(layer.size.capacity) * row;
                let buffers = [&layer.k, &layer.v].into_iter().take(if one_buffer(spec) { 1 } else { 2 });
                buffers.map(|buffer| (buffer, first, u64::from(positions) * row)).collect()
            })
            .collect()
    }

    /// Bytes that [`KvCache::copy_sequence`] takes beside the cache.
    pub fn bytes_to_copy<'a>(&self, specs: impl Iterator<Item = &'a HeadMixtureSpec>, positions: u32) -> u64 {
        let ranges = self.ranges(specs, 0, positions);
        ranges.iter().flatten().map(|(_, _, bytes)| *bytes).max().unwrap_or(0)
    }

    /// Copies a sequence's first `positions` positions to another sequence, after everything recorded so far.
    pub fn copy_sequence<'a>(
        &self,
        recorder: &mut Recorder,
        specs: impl Iterator<Item = &'a HeadMixtureSpec> + Clone,
        [from, to]: [u32; 2],
        positions: u32,
    ) {
        // WebGPU copies between different buffers only.
        let scratch = Buffer::new(recorder.gpu(), "cache.copy", self.bytes_to_copy(specs.clone(), positions));
        let (from, to) = (self.ranges(specs.clone(), from, positions), self.ranges(specs, to, positions));
        let mut copies = Vec::new();
        for ((from, from_offset, bytes), (to, to_offset, _)) in
            from.into_iter().flatten().zip(to.into_iter().flatten())
        {
            copies.push(BufferCopy { from, from_offset, to: &scratch, to_offset: 0, bytes });
            copies.push(BufferCopy { from: &scratch, from_offset: 0, to, to_offset, bytes });
        }
        recorder.copy_among(&copies);
    }
}
