//! Kernels that work row by row: `embedding`, `norm`, `query_norm`, `rope_cache`, `cache_append`.

use headwise::internal::{
    AttentionShape, Buffer, CacheAppend, Embedding, Gpu, KernelChoice, MatrixShape, NormRows, Precision,
    Queries, QueryNorm, RopeCache, head_stride, rope_angles,
};
use proptest::prelude::*;

use crate::{
    reference::{
        embedding::embedding,
        layer_norm::layer_norm,
        rms_norm::rms_norm,
        rope_cache::{RopeCache as Reference, rope_cache},
    },
    support::{
        Guarded, assert_close, assert_repeatable, check, gpu, hash, matrix, noise, pad, precision, run, size,
        stored, upload,
    },
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

/// Embeds `ids` with a table in parts of `part_rows`.
fn embed(
    table: &[f64],
    vocab: u32,
    width: u32,
    part_rows: u32,
    precision: Precision,
    ids: &[u32],
) -> Vec<f64> {
    let gpu = device();
    let table = matrix(gpu, MatrixShape::dense(vocab, width), precision, part_rows, table);
    let x = Guarded::rows(gpu, ids.len(), width);
    let tokens = ids.len() as u32;
    let ids = Buffer::with_data(gpu, "test.ids", ids);
    run(gpu, |recorder| {
        Embedding { ids: &ids, table: &table, x: &x.buffer, tokens }.record(recorder);
    });
    x.read_rows(width)
}

fn some_ids(seed: u64, count: u32, vocab: u32) -> Vec<u32> {
    (0..count as usize).map(|i| (hash(seed, i) % u64::from(vocab)) as u32).collect()
}

#[test]
fn embedding_copies_rows_exactly() {
    let any = (size(200), size(300), size(40), 1..=12u32, precision(), any::<u64>());
    check(64, any, |(vocab, width, tokens, part_blocks, precision, seed)| {
        let table = stored(&noise(seed, (vocab * width) as usize), precision);
        let ids = some_ids(seed + 1, tokens, vocab);
        let got = embed(&table, vocab, width, 8 * part_blocks, precision, &ids);
        assert_eq!(got, embedding(&table, width as usize, &ids));
    });
}

#[test]
fn an_id_out_of_range_leaves_its_row_alone() {
    let table = noise(1, 50 * 20);
    let got = embed(&table, 50, 20, 24, Precision::F32, &[3, 50, u32::MAX, 49]);
    assert_eq!(got[..20], table[3 * 20..4 * 20]);
    assert!(got[20..60].iter().copied().all(Guarded::is_untouched));
    assert_eq!(got[60..], table[49 * 20..]);
}

#[test]
fn embedding_gives_the_same_bits_every_time() {
    let table = noise(1, 500 * 100);
    let ids = some_ids(2, 100, 500);
    assert_repeatable(|| embed(&table, 500, 100, 200, Precision::F32, &ids));
}

/// Norms the rows `chosen` of x, or all of them; with a bias it is a LayerNorm.
fn norm(x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f32, chosen: Option<&[u32]>) -> Vec<f64> {
    let gpu = device();
    let width = weight.len() as u32;
    let count = chosen.map_or(x.len() / weight.len(), <[u32]>::len);
    let (x, weight) = (upload(gpu, x, width), upload(gpu, weight, width));
    let bias = bias.map(|bias| upload(gpu, bias, width));
    let rows = chosen.map(|chosen| Buffer::with_data(gpu, "test.rows", chosen));
    let y = Guarded::rows(gpu, count, width);
    run(gpu, |recorder| {
        NormRows {
            x: &x,
            weight: &weight,
            bias: bias.as_ref(),
            rows: rows.as_ref(),
            y: &y.buffer,
            count: count as u32,
            width,
            eps,
        }
        .record(recorder);
    });
    y.read_rows(width)
}

/// The rows `chosen` of a table; ids past the end mean the last row.
fn rows_of(table: &[f64], width: usize, chosen: &[u32]) -> Vec<f64> {
    let last = table.len() / width - 1;
    let row = |&id: &u32| table[(id as usize).min(last) * width..][..width].to_vec();
    chosen.iter().flat_map(row).collect()
}

#[test]
fn rms_norm_normalises_the_chosen_rows() {
    let eps = prop_oneof![Just(1e-6f32), Just(1e-5), Just(0.1)];
    let scale = prop_oneof![Just(1.0), Just(1e-3), Just(1e4)];
    let any = (size(20), size(20), size(600), eps, scale, any::<u64>());
    check(64, any, |(rows, count, width, eps, scale, seed)| {
        let x = noise(seed, (rows * width) as usize);
        let x: Vec<f64> = x.into_iter().map(|x| f64::from((x * scale) as f32)).collect();
        let weight = noise(seed + 1, width as usize);
        let chosen = some_ids(seed + 2, count, rows);
        let got = norm(&x, &weight, None, eps, Some(&chosen));
        assert_close(&got, &rms_norm(&rows_of(&x, width as usize, &chosen), &weight, f64::from(eps)), "y");
        let all = norm(&x, &weight, None, eps, None);
        assert_close(&all, &rms_norm(&x, &weight, f64::from(eps)), "all rows");
    });
}

#[test]
fn rms_norm_takes_the_last_row_for_one_out_of_range() {
    let (x, weight) = (noise(1, 4 * 24), noise(2, 24));
    let chosen = [1, 4, u32::MAX, 0];
    let expected = rms_norm(&rows_of(&x, 24, &chosen), &weight, f64::from(1e-6f32));
    assert_close(&norm(&x, &weight, None, 1e-6, Some(&chosen)), &expected, "y");
}

#[test]
fn rms_norm_of_zeros_is_zero() {
    assert_eq!(norm(&[0.0; 20], &noise(1, 10), None, 1e-6, Some(&[0, 1])), [0.0; 20]);
}

#[test]
fn rms_norm_gives_the_same_bits_every_time() {
    let (x, weight) = (noise(1, 40 * 300), noise(2, 300));
    let chosen = some_ids(3, 60, 40);
    assert_repeatable(|| norm(&x, &weight, None, 1e-6, Some(&chosen)));
}

/// Widths of every remainder, and rows far from zero, whose mean is not small.
#[test]
fn layer_norm_centres_and_scales_rows() {
    let eps = prop_oneof![Just(1e-5f32), Just(1e-12), Just(0.1)];
    let scale = prop_oneof![Just(1.0), Just(1e-2), Just(1e4)];
    let shift = prop_oneof![2 => Just(0.0), 1 => Just(1.0), 1 => Just(-3.0)];
    let any = (size(20), size(20), size(600), eps, (scale, shift), any::<u64>());
    check(96, any, |(rows, count, width, eps, (scale, shift), seed)| {
        let x = noise(seed, (rows * width) as usize);
        let x: Vec<f64> = x.into_iter().map(|x| f64::from(((x + shift) * scale) as f32)).collect();
        let [weight, bias] = [1, 2].map(|salt| noise(seed + salt, width as usize));
        let chosen = some_ids(seed + 3, count, rows);
        // A variance of nothing but rounding, times a large 1/√ε, is noise on both sides.
        let eps = if width == 1 { 0.1 } else { eps };
        let expected = |x: &[f64]| layer_norm(x, &weight, &bias, f64::from(eps));
        let got = norm(&x, &weight, Some(&bias), eps, Some(&chosen));
        assert_close(&got, &expected(&rows_of(&x, width as usize, &chosen)), "y");
        assert_close(&norm(&x, &weight, Some(&bias), eps, None), &expected(&x), "all rows");
    });
}

#[test]
fn layer_norm_of_a_constant_row_is_the_bias() {
    for width in [1, 3, 8, 13, 257] {
        let (weight, bias) = (noise(1, width), noise(2, width));
        let got = norm(&vec![0.5; 2 * width], &weight, Some(&bias), 1e-5, None);
        assert_close(&got, &bias.repeat(2), width);
    }
}

#[test]
fn layer_norm_takes_the_last_row_for_one_out_of_range() {
    let (x, weight, bias) = (noise(1, 4 * 24), noise(2, 24), noise(3, 24));
    let chosen = [1, 4, u32::MAX, 0];
    let expected = layer_norm(&rows_of(&x, 24, &chosen), &weight, &bias, f64::from(1e-5f32));
    assert_close(&norm(&x, &weight, Some(&bias), 1e-5, Some(&chosen)), &expected, "y");
}

#[test]
fn layer_norm_gives_the_same_bits_every_time() {
    let (x, weight, bias) = (noise(1, 40 * 301), noise(2, 301), noise(3, 301));
    assert_repeatable(|| norm(&x, &weight, Some(&bias), 1e-5, None));
}

/// Heads of `channels` floats, each padded with zeros to whole vec4s.
fn spread(values: &[f64], channels: u32) -> Vec<f64> {
    let stride = head_stride(channels) as usize;
    let padded = |head: &[f64]| (0..stride).map(|i| head.get(i).copied().unwrap_or(0.0)).collect::<Vec<_>>();
    values.chunks_exact(channels as usize).flat_map(padded).collect()
}

/// The lengths of queries `[tokens, heads, head_dim]`, and what the oracle says.
fn query_norms(q: &[f64], tokens: u32, heads: u32, head_dim: u32) -> [Vec<f64>; 2] {
    let gpu = device();
    let expected = q.chunks_exact(head_dim as usize).map(crate::reference::router::norm).collect();
    let q = upload(gpu, &spread(q, head_dim), heads * head_stride(head_dim));
    // The padding is zero before; the kernel must leave it so.
    let scores = Guarded::holding(gpu, 0, &pad(&vec![777.0; (tokens * heads) as usize], heads));
    run(gpu, |recorder| {
        QueryNorm { q: &q, scores: &scores.buffer, tokens, heads, head_dim }.record(recorder);
    });
    [scores.read_rows(heads), expected]
}

#[test]
fn query_norm_is_the_length_of_each_query() {
    let any = (size(9), prop_oneof![4 => size(20), 1 => size(150)], size(130), any::<u64>());
    check(64, any, |(tokens, heads, head_dim, seed)| {
        let q = noise(seed, (tokens * heads * head_dim) as usize);
        let [got, expected] = query_norms(&q, tokens, heads, head_dim);
        assert_close(&got, &expected, "scores");
    });
}

#[test]
fn query_norm_gives_the_same_bits_every_time() {
    let q = noise(1, 30 * 70 * 25);
    assert_repeatable(|| query_norms(&q, 30, 70, 25)[0].clone());
}

#[derive(Clone, Debug)]
struct Append {
    shape: AttentionShape,
    /// (position, sequence) of each token.
    spans: Vec<[u32; 2]>,
    /// The first column of a source row, and columns after the last.
    first: u32,
    more: u32,
    seed: u64,
}

fn any_append() -> impl Strategy<Value = Append> {
    let sizes = (size(5), size(70), size(40), 1..=3u32);
    (sizes, size(12), 0..9u32, 0..20u32, any::<u64>()).prop_map(
        |((kv_heads, head_dim, capacity, sequences), tokens, first_quads, more, seed)| {
            let shape = AttentionShape { kv_heads, head_dim, capacity, sequences, ..ROPE };
            // Different places: two tokens at one place would race.
            let places = capacity * sequences;
            let place = |i| (i + seed as u32 % places) % places;
            let spans =
                (0..tokens.min(places)).map(|i| [place(i) / sequences, place(i) % sequences]).collect();
            Append { shape, spans, first: 4 * first_quads, more, seed }
        },
    )
}

impl Append {
    /// Appends; the values are copied, so the comparison is exact.
    fn check(&self) -> Vec<f64> {
        let gpu = device();
        let AttentionShape { kv_heads, head_dim, capacity, sequences, .. } = self.shape;
        let width = kv_heads * head_stride(head_dim);
        let src_width = self.first + width + self.more;
        let tokens = self.spans.len() as u32;
        let mut src = noise(self.seed, (tokens * src_width) as usize);
        // Heads come padded.
        for row in src.chunks_exact_mut(src_width as usize) {
            let own = &mut row[self.first as usize..][..width as usize];
            for head in own.chunks_exact_mut(head_stride(head_dim) as usize) {
                head[head_dim as usize..].fill(0.0);
            }
        }
        let mut expected = noise(self.seed + 1, (sequences * capacity * width) as usize);
        let cache = Guarded::holding(gpu, 0, &pad(&expected, width));
        let spans = Buffer::with_data(gpu, "test.spans", &self.spans);
        let src_on_gpu = upload(gpu, &src, src_width);
        run(gpu, |recorder| {
            CacheAppend {
                shape: self.shape,
                spans: &spans,
                src: &src_on_gpu,
                src_width,
                first: self.first,
                cache: &cache.buffer,
                tokens,
            }
            .record(recorder);
        });
        for (row, &[position, sequence]) in src.chunks_exact(src_width as usize).zip(&self.spans) {
            let place = sequence.min(sequences - 1) * capacity + position.min(capacity - 1);
            let width = width as usize;
            expected[place as usize * width..][..width].copy_from_slice(&row[self.first as usize..][..width]);
        }
        let got = cache.read_rows(width);
        assert_eq!(got, expected);
        got
    }
}

#[test]
fn cache_append_copies_columns_to_their_places_and_nothing_else() {
    check(96, any_append(), |append| {
        append.check();
    });
}

#[test]
fn cache_append_takes_the_last_place_for_one_out_of_range() {
    let shape = AttentionShape { capacity: 9, ..ROPE };
    for spans in [vec![[9, 0], [u32::MAX, 7], [1, 0]], vec![[3, 2], [4, u32::MAX]]] {
        Append { shape, spans, first: 8, more: 3, seed: 2 }.check();
    }
}

#[test]
fn cache_append_gives_the_same_bits_every_time() {
    let spans = (0..30).map(|i| [i / 2, i % 2]).collect();
    let append =
        Append { shape: AttentionShape { capacity: 20, ..ROPE }, spans, first: 60, more: 0, seed: 3 };
    assert_repeatable(|| append.check());
}

#[derive(Clone, Debug)]
struct Rope {
    shape: AttentionShape,
    theta: f64,
    /// (position, sequence) of each token.
    spans: Vec<[u32; 2]>,
    seed: u64,
}

fn any_rope() -> impl Strategy<Value = Rope> {
    let sizes = (size(5), size(4), size(4), size(32), size(40), 1..=3u32);
    let theta = prop_oneof![Just(1e4), Just(5e5), Just(100.0)];
    (sizes, 0..4u32, theta, size(12), any::<u64>()).prop_map(
        |((slots, heads, kv_heads, head_quads, capacity, sequences), queries, theta, tokens, seed)| {
            let shape = AttentionShape {
                queries: match queries {
                    0 => Queries::ByExpert,
                    1 => Queries::Dense { experts: slots + 2 },
                    _ => Queries::BySlot,
                },
                slots,
                heads,
                kv_heads,
                group: 1,
                head_dim: 4 * head_quads,
                capacity,
                sequences,
            };
            // Different places: two tokens at one place would race.
            let places = capacity * sequences;
            let place = |i| (i + seed as u32 % places) % places;
            let spans =
                (0..tokens.min(places)).map(|i| [place(i) / sequences, place(i) % sequences]).collect();
            Rope { shape, theta, spans, seed }
        },
    )
}

impl Rope {
    /// q, keys and values after the kernel, and after the oracle.
    fn run(&self) -> [[Vec<f64>; 3]; 2] {
        let gpu = device();
        let AttentionShape { slots, heads, kv_heads, head_dim, capacity, sequences, .. } = self.shape;
        let (slots, heads) = match self.shape.queries {
            Queries::Dense { experts } => (1, experts * heads),
            Queries::BySlot | Queries::ByExpert => (slots, heads),
        };
        let (q_width, kv_width, tokens) = (heads * head_dim, kv_heads * head_dim, self.spans.len() as u32);
        let q = noise(self.seed, (tokens * slots * q_width) as usize);
        let kv = noise(self.seed + 1, (tokens * 2 * kv_width) as usize);
        // Places no token writes keep what they have.
        let keys = noise(self.seed + 2, (sequences * capacity * kv_width) as usize);
        let values = noise(self.seed + 3, keys.len());

        let on_gpu = [(&q, q_width), (&keys, kv_width), (&values, kv_width)]
            .map(|(rows, width)| Guarded::holding(gpu, 0, &pad(rows, width)));
        let spans = Buffer::with_data(gpu, "test.spans", &self.spans);
        let angles = rope_angles(gpu, capacity, head_dim, self.theta);
        let kv_on_gpu = upload(gpu, &kv, 2 * kv_width);
        run(gpu, |recorder| {
            RopeCache {
                shape: self.shape,
                spans: &spans,
                angles: &angles,
                q: &on_gpu[0].buffer,
                kv: &kv_on_gpu,
                k_cache: &on_gpu[1].buffer,
                v_cache: &on_gpu[2].buffer,
                tokens,
            }
            .record(recorder);
        });
        let [got_q, got_keys, got_values] = &on_gpu;
        let got = [got_q.read_rows(q_width), got_keys.read_rows(kv_width), got_values.read_rows(kv_width)];

        // The kernel takes the last place for one out of range.
        let clamped = |i: usize, limit: u32| self.spans.iter().map(|span| span[i].min(limit - 1)).collect();
        let (positions, in_sequences): (Vec<u32>, Vec<u32>) = (clamped(0, capacity), clamped(1, sequences));
        let op = Reference {
            q_heads: (slots * heads) as usize,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            theta: self.theta,
            capacity: capacity as usize,
            positions: &positions,
            sequences: &in_sequences,
        };
        let mut expected = [q, keys, values];
        let [q, keys, values] = &mut expected;
        rope_cache(&op, q, &kv, keys, values);
        [got, expected]
    }

    fn check(&self) -> Vec<f64> {
        let [[q, keys, values], [expected_q, expected_keys, expected_values]] = self.run();
        assert_close(&q, &expected_q, "q");
        assert_close(&keys, &expected_keys, "keys");
        assert_eq!(values, expected_values, "values are copied");
        [q, keys, values].concat()
    }
}

#[test]
fn rope_cache_rotates_and_appends() {
    check(64, any_rope(), |rope| {
        rope.check();
    });
}

const ROPE: AttentionShape = AttentionShape {
    queries: Queries::BySlot,
    slots: 2,
    heads: 3,
    kv_heads: 3,
    group: 1,
    head_dim: 20,
    capacity: 4000,
    sequences: 2,
};

/// Angles come from a table made in f64, so they do not lose precision far from position 0.
#[test]
fn rope_cache_is_exact_at_large_positions() {
    Rope { shape: ROPE, theta: 1e4, spans: vec![[3999, 0], [3998, 1], [2047, 0]], seed: 1 }.check();
}

#[test]
fn rope_cache_takes_the_last_place_for_one_out_of_range() {
    Rope { shape: ROPE, theta: 1e4, spans: vec![[4000, 0], [u32::MAX, 7], [1, 0]], seed: 2 }.check();
}

#[test]
fn rope_cache_gives_the_same_bits_every_time() {
    let spans = (0..30).map(|i| [i / 2, i % 2]).collect();
    let rope = Rope { shape: AttentionShape { capacity: 20, ..ROPE }, theta: 1e4, spans, seed: 3 };
    assert_repeatable(|| rope.check());
}
