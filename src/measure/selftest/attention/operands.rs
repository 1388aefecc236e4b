//! Query rows over a cache of noise: their numbers, on the device, and what attention to them must give.

use headwise_reference::{
    dot,
    noise::{hash, noise},
};

use super::super::{
    Finding, Lab,
    lab::{Output, pad, unpad},
};
use crate::{
    Result,
    gpu::{Buffer, Recorder, WasmNotSend},
    ops::{CacheLayout, CachePrecision, CachedWindow, HeadLayout, KeyValues, Queries, Routes, Span},
};

const SEQUENCES: u32 = 2;

/// Query rows over a cache of noise.
#[derive(Clone, Copy)]
pub(in super::super) struct Attention {
    pub name: &'static str,
    pub queries: Queries,
    pub slots: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub group: u32,
    /// Channels of a head, a multiple of 8.
    pub dim: u32,
    pub cache: CachePrecision,
    pub capacity: u32,
    /// (slot, sequence) of each token; the first that each sees.
    pub spans: &'static [[u32; 2]],
    pub first: u32,
}

/// The numbers of an [`Attention`].
pub(in super::super) struct Operands {
    pub q: Vec<f64>,
    /// `[sequences, capacity, kv_heads, dim]`, as they are after storage
    pub keys: Vec<f64>,
    pub values: Vec<f64>,
    /// `[tokens, slots]`
    pub chosen: Vec<u32>,
}

/// What a kernel reads and writes.
pub(in super::super) struct Buffers {
    pub q: Buffer,
    pub spans: Buffer,
    pub chosen: Buffer,
    pub cache: KeyValues,
    pub scratch: Output,
    pub out: Output,
}

impl Attention {
    pub fn tokens(&self) -> u32 {
        self.spans.len() as u32
    }

    pub fn most_keys(&self) -> u32 {
        self.spans.iter().map(|span| span[0] + 1).max().unwrap_or(1)
    }

    /// Keys that a token sees.
    fn sees(&self, slot: u32) -> std::ops::Range<u32> {
        self.first.min(slot)..slot + 1
    }

    pub fn head_layout(&self) -> HeadLayout {
        let Self { queries, slots, heads, kv_heads, group, dim, .. } = *self;
        let scale = HeadLayout::usual_scale(dim);
        HeadLayout {
            queries,
            slots,
            heads,
            kv_heads,
            group,
            key_dim: dim,
            value_dim: dim,
            scale,
            head_spans: false,
        }
    }

    fn cache_layout(&self) -> CacheLayout {
        let Self { capacity, kv_heads, dim, cache: precision, .. } = *self;
        let keys_are_values = false;
        CacheLayout {
            sequences: SEQUENCES,
            capacity,
            kv_heads,
            key_dim: dim,
            value_dim: dim,
            keys_are_values,
            precision,
        }
    }

    pub fn operands(&self) -> Operands {
        let Self { slots, heads, kv_heads, dim, capacity, .. } = *self;
        let places = (SEQUENCES * capacity * kv_heads * dim) as usize;
        let stored = |values: Vec<f64>| -> Vec<f64> {
            let round = |value: f64| match self.cache {
                CachePrecision::F32 => value,
                CachePrecision::F16 => half::f16::from_f64(value).to_f64(),
            };
            values.into_iter().map(round).collect()
        };
        // Neighbours of any expert, so that each is chosen once.
        let experts = kv_heads * self.group / heads;
        let chosen = (0..self.tokens()).flat_map(|token| {
            let any = (hash(9, token as usize) % u64::from(experts.max(1))) as u32;
            (0..slots).map(move |slot| (any + slot) % experts.max(1))
        });
        Operands {
            q: noise(1, (self.tokens() * slots * heads * dim) as usize),
            keys: stored(noise(2, places)),
            values: stored(noise(3, places)),
            chosen: chosen.collect(),
        }
    }

    /// Keys, then values, as words of one window.
    fn words(&self, operands: &Operands) -> Vec<u32> {
        let all = operands.keys.iter().chain(&operands.values);
        match self.cache {
            CachePrecision::F32 => all.map(|&value| (value as f32).to_bits()).collect(),
            CachePrecision::F16 => {
                let halves: Vec<u32> =
                    all.map(|&value| half::f16::from_f64(value).to_bits().into()).collect();
                halves.chunks_exact(2).map(|pair| pair[0] | pair[1] << 16).collect()
            }
        }
    }

    pub fn buffers(&self, lab: &Lab, operands: &Operands) -> (Buffers, Output) {
        let heads = self.head_layout();
        let layout = self.cache_layout();
        let words = lab.output_of(&self.words(operands));
        let windows = layout.windows(u64::MAX).into_iter();
        let cached = windows.map(|window| CachedWindow { window, buffer: words.buffer.clone() });
        let spans = self.spans.iter().map(|&[slot, sequence]| {
            let seen = self.sees(slot);
            Span { position: slot, sequence, slot, first: seen.start, end: seen.end }
        });
        let used = u64::from(self.tokens() * self.slots * self.heads);
        let splits = used * u64::from(HeadLayout::splits(self.most_keys()));
        let rows = (self.tokens() * self.slots) as usize;
        // The padding is zero before; attention must leave it so.
        let width = self.heads * self.dim;
        let buffers = Buffers {
            q: lab.rows(&operands.q, width),
            spans: lab.data(&Span::words(&spans.collect::<Vec<_>>())),
            chosen: lab.data(&operands.chosen),
            cache: KeyValues { layout, windows: cached.collect() },
            scratch: lab.output(HeadLayout::split_floats(splits, heads.value_stride()) as usize),
            out: lab.output_of(&pad(&vec![777.0; rows * width as usize], width)),
        };
        (buffers, words)
    }

    /// The scores of each chosen head by itself, from the oldest key to the newest; the first slot it sees, and where in the cache
    /// a slot of its key/value head is.
    fn scores<'a>(
        &'a self,
        operands: &'a Operands,
    ) -> impl Iterator<Item = (Vec<f64>, u32, impl Fn(u32) -> usize)> {
        let Self { queries, slots, heads, kv_heads, group, capacity, dim, .. } = *self;
        let d = dim as usize;
        let scale = 1.0 / f64::from(dim).sqrt();
        operands.q.chunks_exact(d).enumerate().map(move |(row, q)| {
            let (token, index) = (row as u32 / (slots * heads), row as u32 % (slots * heads));
            let head = match queries {
                Queries::BySlot => index,
                _ => operands.chosen[(token * slots + index / heads) as usize] * heads + index % heads,
            };
            let [slot, sequence] = self.spans[token as usize];
            let kv_head = head / group % kv_heads;
            let place = move |i: u32| (((sequence * capacity + i) * kv_heads + kv_head) * dim) as usize;
            let score = |i: u32| scale * dot(q, &operands.keys[place(i)..][..d]);
            (self.sees(slot).map(score).collect(), self.sees(slot).start, place)
        })
    }

    /// The scores of each chosen head, `[tokens, slots · heads]` of them.
    pub fn all_scores<'a>(&'a self, operands: &'a Operands) -> impl Iterator<Item = Vec<f64>> {
        self.scores(operands).map(|(scores, _, _)| scores)
    }

    /// What each chosen head puts out: its keys' values by their weights.
    pub fn expected(&self, operands: &Operands, weigh: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let d = self.dim as usize;
        let mut out = Vec::new();
        for (scores, first, place) in self.scores(operands) {
            let mut sum = vec![0.0; d];
            for (i, weight) in (first..).zip(weigh(&scores)) {
                let value = &operands.values[place(i)..][..d];
                sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sum);
        }
        out
    }

    /// How each chosen head weighs `row` slots, `[tokens, slots · heads, row]`.
    pub fn weights(&self, operands: &Operands, row: u32, weigh: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let of = |(scores, first, _): (Vec<f64>, u32, _)| {
            let mut weights = vec![0.0; row as usize];
            weights[first as usize..][..scores.len()].copy_from_slice(&weigh(&scores));
            weights
        };
        self.scores(operands).flat_map(of).collect()
    }

    /// The routes of heads that count by expert.
    pub fn routes<'a>(&self, chosen: &'a Buffer) -> Option<Routes<'a>> {
        let routes = Routes { chosen, gates: chosen, first: 0, scores: chosen, first_score: 0 };
        (self.queries != Queries::BySlot).then_some(routes)
    }

    /// How far the output is from the reference.
    pub async fn compare(
        &self,
        lab: &Lab,
        operands: &Operands,
        buffers: &Buffers,
        weigh: fn(&[f64]) -> Vec<f64>,
        record: impl FnOnce(&mut Recorder) + WasmNotSend,
    ) -> Result<Finding> {
        let read = lab.run(&[&buffers.out, &buffers.scratch], record).await?;
        let got = unpad(&read[0], self.heads * self.dim)?;
        Ok(Finding::close(&got, &self.expected(operands, weigh)))
    }
}
