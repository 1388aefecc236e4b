//! Row attention in both shapes on this machine's adapter: one workgroup of 64 lanes for each row or tile, against one subgroup
//! for a tile (which only software adapters run by themselves); and a cache of f16 against one of f32.
//!
//! `cargo bench --bench row_attention` prints a time for each and, at the end, the ratios of one run. On Linux these are of
//! processor time, which other work on the machine changes less.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use headwise::{
    Gpu, GpuOptions, KernelChoice, block_on,
    internal::{
        Buffer, CacheLayout, CachePrecision, DecodeAttention, HeadLayout, KeyValues, PrefillAttention,
        Queries, Recorder, Span,
    },
};

/// The name of a layout, and its slots, heads of a slot, key/value heads, head size.
const LAYOUTS: [(&str, u32, u32, u32, u32); 4] = [
    ("JetMoE, 2 experts of 3 heads of 64", 2, 3, 3, 64),
    ("JetMoE-8B, 2 experts of 16 heads of 128", 2, 16, 16, 128),
    ("MoA, 8 heads of 64, shared keys", 8, 1, 1, 64),
    ("dense, 12 heads of 64", 1, 12, 12, 64),
];

/// Keys a decoded token sees; tokens of a prompt.
const DECODE: [u32; 3] = [64, 256, 1024];
const PREFILL: [u32; 2] = [128, 512];

struct Setup {
    recorder: Recorder,
    heads: HeadLayout,
    keys: u32,
    tokens: u32,
    spans: Buffer,
    ranges: Buffer,
    q: Buffer,
    cache: KeyValues,
    scratch: Buffer,
    out: Buffer,
}

impl Setup {
    /// `tokens` tokens, the last of which sees `keys` keys.
    fn new(gpu: &Gpu, layout: usize, precision: CachePrecision, tokens: u32, keys: u32) -> Self {
        let (_, slots, heads, kv_heads, head_dim) = LAYOUTS[layout];
        let heads_of_slot = heads;
        let heads = HeadLayout {
            queries: Queries::BySlot,
            slots,
            heads,
            kv_heads,
            group: 1,
            key_dim: head_dim,
            value_dim: head_dim,
            scale: HeadLayout::usual_scale(head_dim),
            head_spans: false,
        };
        let layout = CacheLayout {
            sequences: 1,
            capacity: keys,
            kv_heads,
            key_dim: head_dim,
            value_dim: head_dim,
            keys_are_values: false,
            precision,
        };
        let spans: Vec<Span> = (keys - tokens..keys).map(|position| Span::causal(position, 0)).collect();
        let floats = |count: u32| Buffer::new(gpu, "bench", 4 * u64::from(count));
        let rows = u64::from(slots * heads_of_slot);
        let scratch =
            HeadLayout::split_floats(rows * u64::from(HeadLayout::splits(keys)), heads.value_stride());
        Self {
            recorder: Recorder::new(gpu),
            keys,
            tokens,
            spans: Buffer::with_data(gpu, "spans", &Span::words(&spans)),
            ranges: Buffer::with_data(gpu, "ranges", &[[0, tokens]]),
            q: floats(tokens * slots * heads.q_row()),
            cache: KeyValues::new(gpu, layout, keys),
            scratch: floats(scratch as u32),
            out: floats(tokens * slots * heads.out_row()),
            heads,
        }
    }

    fn record(&mut self) {
        let Self { heads, spans, ranges, q, cache, scratch, out, .. } = self;
        let (heads, tokens) = (*heads, self.tokens);
        if tokens == 1 {
            DecodeAttention {
                heads,
                spans,
                q,
                cache,
                scratch,
                routes: None,
                out,
                tokens,
                most_keys: self.keys,
                relative: None,
                split: true,
                keys: 0,
            }
            .record(&mut self.recorder);
        } else {
            PrefillAttention {
                heads,
                spans,
                ranges,
                q,
                cache,
                out,
                tokens,
                longest: tokens,
                ranges_len: 1,
                most_keys: self.keys,
                keys: 0,
            }
            .record(&mut self.recorder);
        }
    }

    /// Wall and processor time of `iterations` submissions of one attention each, for decoding of 16.
    fn time(&mut self, iterations: u64) -> (Duration, Duration) {
        let each = if self.tokens == 1 { 16 } else { 1 };
        let (start, processor) = (Instant::now(), processor_time());
        for _ in 0..iterations {
            (0..each).for_each(|_| self.record());
            self.recorder.submit();
        }
        self.recorder.gpu().settle().expect("the GPU finishes");
        let wall = start.elapsed();
        let used = processor_time().zip(processor).map(|(now, then)| now - then);
        (wall, used.unwrap_or(wall))
    }
}

/// What all threads of this process used, where the system says so: in hundredths of a second.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}

fn open(kernels: KernelChoice) -> Gpu {
    block_on(Gpu::new(GpuOptions::new().kernels(kernels))).expect("a GPU adapter")
}

fn main() {
    let gpus = [KernelChoice::Workgroup, KernelChoice::Broadcast].map(open);
    println!("adapter: {} ({})", gpus[0].capabilities().name, gpus[0].capabilities().driver);
    let variants = [
        ("workgroup, f32", &gpus[0], CachePrecision::F32),
        ("broadcast, f32", &gpus[1], CachePrecision::F32),
        ("broadcast, f16", &gpus[1], CachePrecision::F16),
    ];
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let forms = DECODE.map(|keys| (1, keys)).into_iter().chain(PREFILL.map(|tokens| (tokens, tokens)));
    for (tokens, keys) in forms {
        let form =
            if tokens == 1 { format!("decode, {keys} keys") } else { format!("prefill, {tokens} tokens") };
        let mut group = criterion.benchmark_group(&form);
        let (name, ..) = LAYOUTS[0];
        for (variant, gpu, cache) in variants {
            let mut setup = Setup::new(gpu, 0, cache, tokens, keys);
            group.bench_function(BenchmarkId::new(variant, name), |bencher| {
                bencher.iter_custom(|n| setup.time(n).0);
            });
        }
        group.finish();
        for (layout, (name, ..)) in LAYOUTS.iter().enumerate() {
            let ratios = ratios(&variants, layout, tokens, keys);
            let [plain, broadcast, half] = ratios;
            println!(
                "{form}, {name}: by broadcast {:.2} of the time by workgroup, with f16 {:.2}",
                broadcast / plain,
                half / plain
            );
        }
    }
}

/// Processor times from interleaved rounds of one run, in seconds.
fn ratios(variants: &[(&str, &Gpu, CachePrecision); 3], layout: usize, tokens: u32, keys: u32) -> [f64; 3] {
    let mut setups = variants.map(|(_, gpu, cache)| Setup::new(gpu, layout, cache, tokens, keys));
    // As many as the slowest does in a tenth of a second, so that ticks do not matter.
    for setup in &mut setups {
        setup.time(1);
    }
    let one = setups[0].time(2).0.as_secs_f64() / 2.0;
    let rounds = (0.1 / one).ceil().clamp(1.0, 400.0) as u64;
    let mut sums = [0.0; 3];
    for _ in 0..5 {
        for (setup, sum) in setups.iter_mut().zip(&mut sums) {
            *sum += setup.time(rounds).1.as_secs_f64();
        }
    }
    sums
}
