//! The key/value cache of a session.

use crate::{
    gpu::{Buffer, Gpu},
    layers::{HeadMixtureSpec, KvProjection, PositionEncoding},
    ops::rope_angles,
};

/// Keys and values of one layer, both `[sequences, capacity, kv_heads · head_dim]` f32; one buffer where they are
/// the same.
pub struct LayerCache {
    pub k: Buffer,
    pub v: Buffer,
    /// `[capacity, head_dim / 2]` of (cos, sin), shared by the layers that rotate alike.
    pub angles: Buffer,
    pub capacity: u32,
    pub sequences: u32,
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
    ) -> u64 {
        layers.map(|spec| spec.cache_bytes(sequences, capacity)).sum()
    }

    /// Allocates an empty cache.
    pub fn new<'a>(
        gpu: &Gpu,
        layers: impl Iterator<Item = &'a HeadMixtureSpec>,
        sequences: u32,
        capacity: u32,
    ) -> Self {
        let mut tables: Vec<(u32, f64, Buffer)> = Vec::new();
        let mut angles = |spec: &HeadMixtureSpec| {
            let PositionEncoding::Rope { theta } = spec.position else {
                return Buffer::new(gpu, "no angles", 0);
            };
            let known = tables.iter().find(|(dim, base, _)| (*dim, *base) == (spec.head_dim, theta));
            if let Some((_, _, table)) = known {
                return table.clone();
            }
            let table = rope_angles(gpu, capacity, spec.head_dim, theta);
            tables.push((spec.head_dim, theta, table.clone()));
            table
        };
        let layers = layers
            .map(|spec| {
                let bytes = spec.attention_shape(sequences, capacity).cache_bytes();
                let k = Buffer::new(gpu, "cache.k", bytes);
                let v = match spec.kv {
                    KvProjection::Identity => k.clone(),
                    KvProjection::Projected { .. } => Buffer::new(gpu, "cache.v", bytes),
                };
                LayerCache { k, v, angles: angles(spec), capacity, sequences }
            })
            .collect();
        Self { layers }
    }
}
