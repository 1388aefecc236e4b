//! Row attention over a cache: decoding rows with and without splits, tiles of a prompt's rows, stick-breaking, and the kernel
//! that turns, appends and attends at once.

use headwise_reference::{
    dot,
    head_mixture::stick_breaking,
    noise::{hash, noise},
    rope_cache::rope,
    softmax,
};

use super::{
    Finding, Lab, Run,
    lab::{Output, floats_of, pad, unpad},
};
use crate::{
    Result,
    gpu::{Buffer, Recorder, WasmNotSend},
    ops::{
        CacheLayout, CachePrecision, CachedWindow, DecodeAttention, HeadLayout, KeyValues, PrefillAttention,
        Queries, RopeAttentionDecode, Routes, Span, StickBreaking, rope_angles,
    },
};

const THETA: f64 = 1e4;

/// Query rows over a cache of noise.
#[derive(Clone, Copy)]
struct Attention {
    name: &'static str,
    queries: Queries,
    slots: u32,
    heads: u32,
    kv_heads: u32,
    group: u32,
    /// Channels of a head, a multiple of 8.
    dim: u32,
    cache: CachePrecision,
    capacity: u32,
    /// (slot, sequence) of each token; the first that each sees.
    spans: &'static [[u32; 2]],
    first: u32,
}

const SEQUENCES: u32 = 2;

/// One token of a mixture of heads that share all of the keys.
const ONE: Attention = Attention {
    name: "one token, heads of 64",
    queries: Queries::BySlot,
    slots: 2,
    heads: 3,
    kv_heads: 3,
    group: 1,
    dim: 64,
    cache: CachePrecision::F32,
    capacity: 300,
    spans: &[[41, 1]],
    first: 0,
};

/// Decoding rows.
const FEW: [Attention; 4] = [
    ONE,
    // More keys than a workgroup reads.
    Attention {
        name: "3 tokens, heads of 128, splits",
        dim: 128,
        cache: CachePrecision::F16,
        capacity: 600,
        spans: &[[599, 0], [256, 1], [0, 1]],
        ..ONE
    },
    Attention {
        name: "grouped queries, heads of 8",
        slots: 1,
        heads: 12,
        kv_heads: 2,
        group: 6,
        dim: 8,
        spans: &[[70, 0], [299, 1]],
        first: 5,
        ..ONE
    },
    Attention { name: "one key", spans: &[[0, 0]], ..ONE },
];

/// Rows whose heads count by expert.
const BY_EXPERT: Attention = Attention {
    name: "heads of the chosen experts",
    queries: Queries::ByExpert,
    kv_heads: 6,
    dim: 24,
    spans: &[[70, 0], [299, 1]],
    ..ONE
};

/// A prompt's rows.
const MANY: [Attention; 3] = [
    Attention { name: "21 rows, heads of 64", spans: &rows::<21>(0, 10), ..ONE },
    Attention {
        name: "37 rows, heads of 128",
        dim: 128,
        cache: CachePrecision::F16,
        spans: &rows::<37>(1, 250),
        ..ONE
    },
    Attention {
        name: "19 rows, grouped queries, heads of 8",
        slots: 1,
        heads: 12,
        kv_heads: 2,
        group: 6,
        dim: 8,
        spans: &rows::<19>(0, 0),
        ..ONE
    },
];

/// Neighbouring tokens of a sequence.
const fn rows<const N: usize>(sequence: u32, start: u32) -> [[u32; 2]; N] {
    let mut spans = [[start, sequence]; N];
    let mut i = 0;
    while i < N {
        spans[i][0] += i as u32;
        i += 1;
    }
    spans
}

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    for lab in labs {
        let variant = lab.variants.attention.name();
        let decode = ("row_attention_decode", variant);
        for attention in FEW {
            run.case(lab, decode, attention.name, attention.decode(lab, true)).await;
        }
        run.case(lab, decode, "not split", FEW[1].decode(lab, false)).await;
        // What single subgroups do not do is the other kernel's.
        run.case(lab, ("row_attention_decode", "workgroup"), BY_EXPERT.name, BY_EXPERT.decode(lab, true))
            .await;
    }
    for lab in labs {
        for attention in FEW {
            // Each token is alone in its sequence.
            let attention =
                Attention { spans: &attention.spans[..attention.spans.len().min(2)], ..attention };
            let work = attention.rope_decode(lab);
            run.case(lab, ("rope_attention_decode", lab.variants.attention.name()), attention.name, work)
                .await;
        }
    }
    for lab in labs {
        for attention in MANY {
            let work = attention.prefill(lab);
            run.case(lab, ("row_attention_prefill", lab.variants.attention.name()), attention.name, work)
                .await;
        }
    }
    // Sums of splits, which the decoding rows leave behind.
    run.case(&labs[0], ("attention_merge", ""), FEW[1].name, FEW[1].decode(&labs[0], true)).await;
    for attention in [FEW[0], FEW[2], BY_EXPERT] {
        let work = attention.stick_breaking(&labs[0]);
        run.case(&labs[0], ("stick_breaking", ""), attention.name, work).await;
    }
}

/// The numbers of an [`Attention`].
struct Operands {
    q: Vec<f64>,
    /// `[sequences, capacity, kv_heads, dim]`, as they are after storage
    keys: Vec<f64>,
    values: Vec<f64>,
    /// `[tokens, slots]`
    chosen: Vec<u32>,
}

/// What a kernel reads and writes.
struct Buffers {
    q: Buffer,
    spans: Buffer,
    chosen: Buffer,
    cache: KeyValues,
    scratch: Output,
    out: Output,
}

impl Attention {
    fn tokens(&self) -> u32 {
        self.spans.len() as u32
    }

    fn most_keys(&self) -> u32 {
        self.spans.iter().map(|span| span[0] + 1).max().unwrap_or(1)
    }

    /// Keys that a token sees.
    fn sees(&self, slot: u32) -> std::ops::Range<u32> {
        self.first.min(slot)..slot + 1
    }

    fn head_layout(&self) -> HeadLayout {
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

    fn operands(&self) -> Operands {
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

    fn buffers(&self, lab: &Lab, operands: &Operands) -> (Buffers, Output) {
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

    /// Each chosen head by itself: its query, its key/value head, and the weights of the keys from the oldest to the newest.
    fn expected(&self, operands: &Operands, weigh: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let Self { queries, slots, heads, kv_heads, group, capacity, .. } = *self;
        let d = self.dim as usize;
        let scale = 1.0 / f64::from(self.dim).sqrt();
        let mut out = Vec::new();
        for (row, q) in operands.q.chunks_exact(d).enumerate() {
            let (token, index) = (row as u32 / (slots * heads), row as u32 % (slots * heads));
            let head = match queries {
                Queries::BySlot => index,
                _ => operands.chosen[(token * slots + index / heads) as usize] * heads + index % heads,
            };
            let [slot, sequence] = self.spans[token as usize];
            let kv_head = head / group % kv_heads;
            let place = |i: u32| (((sequence * capacity + i) * kv_heads + kv_head) * self.dim) as usize;
            let scores: Vec<f64> =
                self.sees(slot).map(|i| scale * dot(q, &operands.keys[place(i)..][..d])).collect();
            let mut sum = vec![0.0; d];
            for (i, weight) in self.sees(slot).zip(weigh(&scores)) {
                let value = &operands.values[place(i)..][..d];
                sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sum);
        }
        out
    }

    /// How far the output is from the reference.
    async fn compare(
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

    async fn decode(self, lab: &Lab, split: bool) -> Result<Finding> {
        let operands = self.operands();
        let (buffers, _words) = self.buffers(lab, &operands);
        let Buffers { q, spans, chosen, cache, scratch, out } = &buffers;
        let routes = Routes { chosen, gates: chosen, first: 0, scores: chosen, first_score: 0 };
        let record = |recorder: &mut Recorder| {
            DecodeAttention {
                heads: self.head_layout(),
                spans,
                q,
                cache,
                scratch: &scratch.buffer,
                routes: (self.queries != Queries::BySlot).then_some(routes),
                out: &out.buffer,
                tokens: self.tokens(),
                most_keys: self.most_keys(),
                relative: None,
                split,
                keys: 0,
            }
            .record(recorder);
        };
        self.compare(lab, &operands, &buffers, softmax, record).await
    }

    async fn prefill(self, lab: &Lab) -> Result<Finding> {
        let operands = self.operands();
        let (buffers, _words) = self.buffers(lab, &operands);
        let ranges = lab.data(&[0, self.tokens()]);
        let Buffers { q, spans, cache, out, .. } = &buffers;
        let record = |recorder: &mut Recorder| {
            PrefillAttention {
                heads: self.head_layout(),
                spans,
                ranges: &ranges,
                q,
                cache,
                out: &out.buffer,
                tokens: self.tokens(),
                longest: self.tokens(),
                ranges_len: 1,
                most_keys: self.most_keys(),
                keys: 0,
            }
            .record(recorder);
        };
        self.compare(lab, &operands, &buffers, softmax, record).await
    }

    async fn stick_breaking(self, lab: &Lab) -> Result<Finding> {
        let operands = self.operands();
        let (buffers, _words) = self.buffers(lab, &operands);
        let Buffers { q, spans, chosen, cache, scratch, out } = &buffers;
        let routes = Routes { chosen, gates: chosen, first: 0, scores: chosen, first_score: 0 };
        let record = |recorder: &mut Recorder| {
            StickBreaking {
                heads: self.head_layout(),
                spans,
                q,
                cache,
                scratch: &scratch.buffer,
                routes: (self.queries != Queries::BySlot).then_some(routes),
                out: &out.buffer,
                tokens: self.tokens(),
                keys: 0,
            }
            .record(recorder);
        };
        self.compare(lab, &operands, &buffers, stick_breaking, record).await
    }

    /// Over a cache in f32: each token's own key and value come with it, and its query is not turned yet.
    async fn rope_decode(self, lab: &Lab) -> Result<Finding> {
        let this = Self { cache: CachePrecision::F32, ..self };
        let mut operands = this.operands();
        let (buffers, words) = this.buffers(lab, &operands);
        let d = this.dim as usize;
        let own = (this.kv_heads * this.dim) as usize;
        let new = noise(7, 2 * own * this.spans.len());
        let kv = lab.rows(&new, 2 * own as u32);
        let angles = rope_angles(&lab.gpu, this.capacity, this.dim, THETA);
        let Buffers { q, spans, cache, scratch, out, .. } = &buffers;
        let record = |recorder: &mut Recorder| {
            RopeAttentionDecode {
                heads: this.head_layout(),
                spans,
                q,
                kv: &kv,
                angles: &angles,
                rotated: this.dim,
                cache,
                scratch: &scratch.buffer,
                out: &out.buffer,
                tokens: this.tokens(),
                most_keys: this.most_keys(),
                split: true,
                keys: 0,
            }
            .record(recorder);
        };
        let read = lab.run(&[out, &words], record).await?;
        let row = (this.slots * this.heads) as usize * d;
        for ((&[slot, sequence], new), q) in
            this.spans.iter().zip(new.chunks_exact(2 * own)).zip(operands.q.chunks_exact_mut(row))
        {
            let at = (sequence * this.capacity + slot) as usize * own;
            operands.keys[at..][..own].copy_from_slice(&new[..own]);
            operands.values[at..][..own].copy_from_slice(&new[own..]);
            let keys = operands.keys[at..][..own].chunks_exact_mut(d);
            keys.chain(q.chunks_exact_mut(d)).for_each(|head| rope(head, slot, THETA));
        }
        let got = unpad(&read[0], this.heads * this.dim)?;
        let cached = Finding::close(&floats_of(&read[1]), &[&operands.keys[..], &operands.values].concat());
        Ok(Finding::close(&got, &this.expected(&operands, softmax)).and(cached))
    }
}
