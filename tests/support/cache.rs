//! Attentions as tests draw them, and their keys and values in the words of a cache.

use half::f16;
use headwise::internal::{
    CacheLayout, CachePrecision, CachedWindow, Gpu, HeadLayout, KeyValues, Queries, Window, padded,
};
use proptest::prelude::*;

use super::{Guarded, pad, unpad};

/// The sizes of an attention and of its cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub queries: Queries,
    pub slots: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub capacity: u32,
    pub sequences: u32,
    pub head_spans: bool,
    pub cache: CachePrecision,
    /// Bytes of a window at the most.
    pub most: Most,
}

/// How much of a cache a binding holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Most {
    Everything,
    /// Half of the bytes of all.
    Half,
    /// One head of one sequence.
    Head,
    /// Half of the heads and of the sequences, and so many parts of their slots.
    Sections(u32),
}

/// A cache that is cut by slots.
pub fn sections() -> impl Strategy<Value = Most> {
    (2..=6u32).prop_map(Most::Sections)
}

/// Mostly one window.
pub fn most() -> impl Strategy<Value = Most> {
    prop_oneof![2 => Just(Most::Everything), 1 => Just(Most::Half), 1 => Just(Most::Head)]
}

/// How a cache holds its numbers.
pub fn cache_precision() -> impl Strategy<Value = CachePrecision> {
    prop_oneof![Just(CachePrecision::F32), Just(CachePrecision::F16)]
}

impl AttentionShape {
    pub fn head_layout(&self) -> HeadLayout {
        let Self { queries, slots, heads, kv_heads, group, key_dim, value_dim, head_spans, .. } = *self;
        let scale = (1.0 / f64::from(key_dim).sqrt()) as f32;
        HeadLayout { queries, slots, heads, kv_heads, group, key_dim, value_dim, scale, head_spans }
    }

    pub fn cache_layout(&self) -> CacheLayout {
        let Self { sequences, capacity, kv_heads, key_dim, value_dim, cache: precision, .. } = *self;
        CacheLayout { sequences, capacity, kv_heads, key_dim, value_dim, keys_are_values: false, precision }
    }

    /// The windows of its cache.
    pub fn windows(&self) -> Vec<Window> {
        let layout = self.cache_layout();
        let Self { sequences, capacity, kv_heads, .. } = *self;
        let head = layout.bytes() / u64::from(sequences * kv_heads);
        match self.most {
            Most::Everything => layout.windows(u64::MAX),
            Most::Half => layout.windows(layout.bytes().div_ceil(2).max(head)),
            Most::Head => layout.windows(head),
            Most::Sections(parts) => {
                layout.cut([sequences.div_ceil(2), capacity.div_ceil(parts), kv_heads.div_ceil(2)])
            }
        }
    }

    /// Keys `[sequences, capacity, kv_heads, key_dim]` as they are after storage in the cache.
    pub fn cached_keys(&self, keys: &[f64]) -> Vec<f64> {
        values(self.cache, self.key_dim, &words(self.cache, self.key_dim, keys))
    }

    /// Values `[sequences, capacity, kv_heads, value_dim]` likewise.
    pub fn cached_values(&self, rows: &[f64]) -> Vec<f64> {
        values(self.cache, self.value_dim, &words(self.cache, self.value_dim, rows))
    }

    /// Floats of all keys, and of all values.
    pub fn cache_floats(&self) -> [usize; 2] {
        let places = (self.sequences * self.capacity * self.kv_heads) as usize;
        [self.key_dim, self.value_dim].map(|channels| places * channels as usize)
    }
}

/// Heads of `channels` as words of a cache: padded with zeros to whole eights.
fn words(precision: CachePrecision, channels: u32, heads: &[f64]) -> Vec<u32> {
    let floats = pad(heads, channels);
    match precision {
        CachePrecision::F32 => floats.iter().map(|value| value.to_bits()).collect(),
        CachePrecision::F16 => {
            let word = |pair: &[f32]| {
                let [low, high] = [pair[0], pair[1]].map(|value| u32::from(f16::from_f32(value).to_bits()));
                low | high << 16
            };
            floats.chunks_exact(2).map(word).collect()
        }
        other => panic!("{other:?} has no oracle"),
    }
}

/// The reverse of [`words`]; panics if the padding is not zero.
fn values(precision: CachePrecision, channels: u32, words: &[u32]) -> Vec<f64> {
    let floats: Vec<f32> = match precision {
        CachePrecision::F32 => words.iter().map(|&word| f32::from_bits(word)).collect(),
        CachePrecision::F16 => {
            let halves =
                |&word: &u32| [word as u16, (word >> 16) as u16].map(|bits| f16::from_bits(bits).to_f32());
            words.iter().flat_map(halves).collect()
        }
        other => panic!("{other:?} has no oracle"),
    };
    unpad(&floats, channels)
}

/// A cache on the GPU, each window of which is guarded.
pub struct GuardedCache {
    shape: AttentionShape,
    guards: Vec<Guarded>,
    pub kv: KeyValues,
}

impl GuardedCache {
    /// Of keys `[sequences, capacity, kv_heads, key_dim]` and values `[.., value_dim]`.
    pub fn new(gpu: &Gpu, shape: &AttentionShape, keys: &[f64], values: &[f64]) -> Self {
        let guards: Vec<Guarded> = shape
            .windows()
            .iter()
            .map(|window| {
                let of = |channels: u32, rows: &[f64]| {
                    let places = places(shape, window);
                    let heads = places.map(|place| &rows[place * channels as usize..][..channels as usize]);
                    words(shape.cache, channels, &heads.collect::<Vec<_>>().concat())
                };
                let both = [of(shape.key_dim, keys), of(shape.value_dim, values)].concat();
                Guarded::holding(gpu, 0, &both)
            })
            .collect();
        let windows = shape.windows().into_iter().zip(&guards);
        let cached = windows.map(|(window, words)| CachedWindow { window, buffer: words.buffer.clone() });
        let kv = KeyValues { layout: shape.cache_layout(), windows: cached.collect() };
        Self { shape: *shape, guards, kv }
    }

    /// Keys and values as they are now; panics where something beside them changed.
    pub fn read(&self) -> [Vec<f64>; 2] {
        let shape = &self.shape;
        let [mut keys, mut of_values] = shape.cache_floats().map(|count| vec![f64::NAN; count]);
        for (window, words) in shape.windows().iter().zip(&self.guards) {
            let words: Vec<u32> = words.read();
            let heads = places(shape, window).count();
            let floats = heads * padded(shape.key_dim) as usize;
            let (own_keys, own_values) = words.split_at(floats * shape.cache.bytes() as usize / 4);
            let put = |all: &mut [f64], channels: u32, words: &[u32]| {
                let d = channels as usize;
                let own = values(shape.cache, channels, words);
                for (place, head) in places(shape, window).zip(own.chunks_exact(d)) {
                    all[place * d..][..d].copy_from_slice(head);
                }
            };
            put(&mut keys, shape.key_dim, own_keys);
            put(&mut of_values, shape.value_dim, own_values);
        }
        [keys, of_values]
    }
}

/// The places among `[sequences, capacity, kv_heads]` of what a window holds, in its order: sequences, its slots, heads.
fn places<'a>(shape: &'a AttentionShape, window: &'a Window) -> impl Iterator<Item = usize> + 'a {
    let sequences = window.first_sequence..window.first_sequence + window.sequences;
    sequences.flat_map(move |sequence| {
        (window.first_slot..window.first_slot + window.slots).flat_map(move |slot| {
            let heads = window.first_head..window.first_head + window.heads;
            heads.map(move |head| ((sequence * shape.capacity + slot) * shape.kv_heads + head) as usize)
        })
    })
}
