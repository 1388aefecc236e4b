//! The key/value cache of a session.

use crate::{
    gpu::{Buffer, Gpu, Recorder},
    layers::{HeadMixtureSpec, KvProjection, PositionEncoding},
    ops::{CacheReorder, rope_angles},
};

/// Keys and values of one layer, both `[sequences, capacity, kv_heads · head_dim]` f32; one buffer where they are
/// the same.
#[derive(Clone)]
pub struct LayerCache {
    pub k: Buffer,
    pub v: Buffer,
    /// `[capacity, rotated / 2]` of (cos, sin), shared by the layers that rotate alike.
    pub angles: Buffer,
    pub capacity: u32,
    pub sequences: u32,
}

/// How long keys and values are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// By later steps.
    Kept,
    /// Within one step: layers of one size share their memory.
    OneStep,
}

/// What a layer's cache takes: bytes in all, and whether keys and values are one buffer. Where they are wanted within one
/// step, layers that take the same share it.
fn memory_of(spec: &HeadMixtureSpec, sequences: u32, capacity: u32) -> (u64, bool) {
    (spec.cache_bytes(sequences, capacity), spec.kv == KvProjection::Identity)
}

/// The cache of every layer.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Bytes for `layers` with room for `capacity` positions in each of `sequences`.
    pub fn bytes<'a>(
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        sequences: u32,
        capacity: u32,
        use_: CacheUse,
    ) -> u64 {
        let memory = layers.map(|spec| memory_of(spec, sequences, capacity));
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
        sequences: u32,
        capacity: u32,
        use_: CacheUse,
    ) -> Self {
        let mut tables: Vec<(u32, f64, Buffer)> = Vec::new();
        let mut angles = |spec: &HeadMixtureSpec| {
            let PositionEncoding::Rope { theta, channels } = spec.position else {
                return Buffer::new(gpu, "no angles", 0);
            };
            let known = tables.iter().find(|(dim, base, _)| (*dim, *base) == (channels, theta));
            if let Some((_, _, table)) = known {
                return table.clone();
            }
            let table = rope_angles(gpu, capacity, channels, theta);
            tables.push((channels, theta, table.clone()));
            table
        };
        let mut made: Vec<((u64, bool), LayerCache)> = Vec::new();
        let layers = layers
            .map(|spec| {
                let memory = memory_of(spec, sequences, capacity);
                let same = made.iter().find(|(other, _)| use_ == CacheUse::OneStep && *other == memory);
                let (k, v) = match same {
                    Some((_, cache)) => (cache.k.clone(), cache.v.clone()),
                    None => {
                        let bytes = spec.attention_shape(sequences, capacity).cache_bytes();
                        let k = Buffer::new(gpu, "cache.k", bytes);
                        let v = if memory.1 { k.clone() } else { Buffer::new(gpu, "cache.v", bytes) };
                        (k, v)
                    }
                };
                let cache = LayerCache { k, v, angles: angles(spec), capacity, sequences };
                made.push((memory, cache.clone()));
                cache
            })
            .collect();
        Self { layers }
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
            let shape = spec.attention_shape(from.sequences, from.capacity);
            let mut copy = |from, to| CacheReorder { shape, parents, from, to, positions }.record(recorder);
            copy(&from.k, &to.k);
            if spec.kv != KvProjection::Identity {
                copy(&from.v, &to.v);
            }
        }
        std::mem::swap(self, spare);
    }
}
