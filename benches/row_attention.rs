//! The row attention kernels with JetMoE's heads (two experts of 16 heads of 128 channels, key/value heads shared) and
//! MoLM's (stick-breaking, two experts of one head of 1,024 channels), on this machine's adapter.
//!
//! `cargo bench --bench row_attention` prints a time for each and then, from rounds of one run that take turns: the bytes of
//! keys and values that decoding reads in a second, against a plain copy (read and written), and the operations of a prompt
//! in a second, against the best dense product.

mod support;

use criterion::Criterion;
use headwise::{
    Gpu, block_on,
    internal::{
        AttentionShape, Buffer, CachePrecision, Counters, DecodeAttention, PrefillAttention, Queries,
        Recorder, Routes, Span, StickBreaking, Yardstick,
    },
};
use support::{in_turns, open_and_announce, time};

const JETMOE: AttentionShape = AttentionShape {
    queries: Queries::BySlot,
    slots: 2,
    heads: 16,
    kv_heads: 16,
    group: 1,
    head_dim: 128,
    capacity: 512,
    sequences: 1,
    head_spans: false,
    cache: CachePrecision::F32,
};
const MOLM: AttentionShape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 1024, ..JETMOE };
const ROUNDS: usize = 7;

#[derive(Clone, Copy, Debug)]
enum Kernel {
    Decode,
    Prefill,
    StickBreaking,
}

/// The last `tokens` tokens of a sequence of `shape.capacity`.
struct Attention {
    recorder: Recorder,
    kernel: Kernel,
    shape: AttentionShape,
    tokens: u32,
    keys: u64,
    spans: Buffer,
    ranges: Buffer,
    q: Buffer,
    k_cache: Buffer,
    v_cache: Buffer,
    partial: Buffer,
    stats: Buffer,
    chosen: Buffer,
    out: Buffer,
}

impl Attention {
    fn new(gpu: &Gpu, kernel: Kernel, shape: AttentionShape, tokens: u32) -> Self {
        let spans: Vec<Span> =
            (shape.capacity - tokens..shape.capacity).map(|position| Span::causal(position, 0)).collect();
        let floats = |name, count: u32| Buffer::new(gpu, name, 4 * u64::from(count));
        let rows = tokens * shape.slots;
        let splits = rows * shape.heads * AttentionShape::splits(shape.capacity);
        Self {
            recorder: Recorder::new(gpu),
            kernel,
            shape,
            tokens,
            keys: spans.iter().map(|span| u64::from(span.keys)).sum(),
            spans: Buffer::with_data(gpu, "spans", &Span::words(&spans)),
            ranges: Buffer::with_data(gpu, "ranges", &[[0, tokens]]),
            q: floats("q", rows * shape.q_row()),
            k_cache: Buffer::new(gpu, "k", shape.cache_bytes()),
            v_cache: Buffer::new(gpu, "v", shape.cache_bytes()),
            partial: floats("partial", splits * shape.head_stride()),
            stats: floats("stats", 2 * splits),
            chosen: floats("chosen", rows),
            out: floats("out", rows * shape.out_row()),
        }
    }

    fn time(&mut self, iterations: u64) -> std::time::Duration {
        let Self { recorder, kernel, shape, tokens, keys, .. } = self;
        let (kernel, shape, tokens, keys) = (*kernel, *shape, *tokens, *keys);
        let (spans, q, k_cache, v_cache) = (&self.spans, &self.q, &self.k_cache, &self.v_cache);
        let (chosen, out) = (&self.chosen, &self.out);
        let routes = Some(Routes { chosen, gates: chosen, first: 0, scores: chosen, first_score: 0 });
        time(recorder, iterations, |recorder| match kernel {
            Kernel::Decode => DecodeAttention {
                shape,
                spans,
                q,
                k_cache,
                v_cache,
                partial: &self.partial,
                stats: &self.stats,
                routes,
                out,
                tokens,
                most_keys: shape.capacity,
                relative: None,
                split: true,
                keys,
            }
            .record(recorder),
            Kernel::Prefill => PrefillAttention {
                shape,
                spans,
                ranges: &self.ranges,
                q,
                k_cache,
                v_cache,
                out,
                tokens,
                longest: tokens,
                ranges_len: 1,
                most_keys: shape.capacity,
                keys,
            }
            .record(recorder),
            Kernel::StickBreaking => {
                StickBreaking { shape, spans, q, k_cache, v_cache, routes, out, tokens, keys }
                    .record(recorder);
            }
        })
    }

    fn work(&mut self) -> Counters {
        let before = self.recorder.counters();
        self.time(1);
        self.recorder.counters() - before
    }
}

fn main() {
    let gpu = open_and_announce();
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut copy = Yardstick::copy(&gpu).expect("a copy");
    let mut matmul = block_on(Yardstick::matmul(&gpu)).expect("a product");
    let all = [
        ("JetMoE, 1 token", Kernel::Decode, JETMOE, 1),
        ("JetMoE, 64 tokens", Kernel::Prefill, JETMOE, 64),
        ("MoLM, 1 token", Kernel::StickBreaking, MOLM, 1),
        ("MoLM, 64 tokens", Kernel::StickBreaking, MOLM, 64),
    ];
    let mut attentions = all.map(|(_, kernel, shape, tokens)| Attention::new(&gpu, kernel, shape, tokens));
    for ((name, kernel, ..), attention) in all.iter().zip(&mut attentions) {
        criterion.bench_function(&format!("{kernel:?}, {name}"), |bencher| {
            bencher.iter_custom(|iterations| attention.time(iterations));
        });
    }
    for ((name, kernel, shape, tokens), attention) in all.iter().zip(&mut attentions) {
        let counters = attention.work();
        let decodes = *tokens == 1;
        let work = if decodes { counters.bytes as f64 } else { 2.0 * counters.macs as f64 };
        let mut attends = || work / attention.time(1).as_secs_f64();
        let mut limits = || if decodes { copy.rate() } else { matmul.rate() }.expect("a limit");
        let rates = in_turns(ROUNDS, &mut [&mut attends, &mut limits]);
        let (unit, limit) =
            if decodes { ("GB/s", "a copy's") } else { ("GFLOP/s", "the best dense product's") };
        println!(
            "{kernel:?}, {name}, {} keys: {:.2} {unit}, {:.2} of {limit} {:.2}",
            shape.capacity,
            rates[0] / 1e9,
            rates[0] / rates[1],
            rates[1] / 1e9
        );
    }
}
