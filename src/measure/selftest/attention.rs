//! Row attention over a cache: decoding rows with and without splits, tiles of a prompt's rows, stick-breaking, and the kernel
//! that turns, appends and attends at once.

pub(super) mod operands;

use headwise_reference::{head_mixture::stick_breaking, noise::noise, rope_cache::rope, softmax};

use super::{
    Finding, Lab, Run,
    lab::{floats_of, unpad},
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        BlendHeads, CachePrecision, DecodeAttention, EditKind, EditPlan, EditPositions, PlannedEdit,
        PrefillAttention, Queries, RopeAttentionDecode, StickBreaking, rope_angles,
    },
};
use operands::{Attention, Buffers};

const THETA: f64 = 1e4;

/// One token of a mixture of heads that share all of the keys.
pub(super) const ONE: Attention = Attention {
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
pub(super) const FEW: [Attention; 4] = [
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
pub(super) const BY_EXPERT: Attention = Attention {
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
    for (name, attention, kind) in [
        ("own values", FEW[2], EditKind::Identity),
        ("means of 600", FEW[1], EditKind::Uniform),
        ("means, by expert", BY_EXPERT, EditKind::Uniform),
    ] {
        run.case(&labs[0], ("blend_heads", ""), name, attention.blended(&labs[0], kind)).await;
    }
}

impl Attention {
    async fn decode(self, lab: &Lab, split: bool) -> Result<Finding> {
        let operands = self.operands();
        let (buffers, _words) = self.buffers(lab, &operands);
        let Buffers { q, spans, chosen, cache, scratch, out } = &buffers;
        let record = |recorder: &mut Recorder| {
            DecodeAttention {
                heads: self.head_layout(),
                spans,
                q,
                cache,
                scratch: &scratch.buffer,
                routes: self.routes(chosen),
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
        let record = |recorder: &mut Recorder| {
            StickBreaking {
                heads: self.head_layout(),
                spans,
                q,
                cache,
                scratch: &scratch.buffer,
                routes: self.routes(chosen),
                out: &out.buffer,
                tokens: self.tokens(),
                keys: 0,
            }
            .record(recorder);
        };
        self.compare(lab, &operands, &buffers, stick_breaking, record).await
    }

    /// Every head blended with the other row, all of it, so that nothing is left of what stood there.
    async fn blended(self, lab: &Lab, kind: EditKind) -> Result<Finding> {
        let operands = self.operands();
        let (buffers, _words) = self.buffers(lab, &operands);
        let Buffers { spans, chosen, cache, out, .. } = &buffers;
        let heads = match self.queries {
            Queries::BySlot => self.slots * self.heads,
            _ => self.kv_heads * self.group,
        };
        let edit = |unit| {
            let (positions, vectors, row) = (EditPositions::All, [].into(), [].into());
            PlannedEdit { unit, kind, value: 1.0, positions, number: 0, vectors, row }
        };
        let plan = EditPlan::new(&lab.gpu, heads, &(0..heads).map(edit).collect::<Vec<_>>());
        let applied = lab.output_of(&[0u32]);
        let record = |recorder: &mut Recorder| {
            BlendHeads {
                plan: &plan,
                applied: &applied.buffer,
                heads: self.head_layout(),
                spans,
                routes: self.routes(chosen),
                cache,
                out: &out.buffer,
                tokens: self.tokens(),
            }
            .record(recorder);
        };
        // The weights of an attention that has no scores.
        let weigh: fn(&[f64]) -> Vec<f64> = match kind {
            EditKind::Identity => |scores| {
                let own = scores.len() - 1;
                (0..scores.len()).map(|i| if i == own { 1.0 } else { 0.0 }).collect()
            },
            _ => |scores| vec![1.0 / scores.len() as f64; scores.len()],
        };
        self.compare(lab, &operands, &buffers, weigh, record).await
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
