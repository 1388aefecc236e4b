//! Kernels that work row by row: `embedding`, `add_positions`, `norm`, `query_norm`, `rope_cache`, `cache_append`,
//! `cache_reorder`, `copy`.

use headwise::internal::{
    AddPositions, Buffer, CacheAppend, CachePrecision, CacheReorder, CachedWindow, Copy, Embedding, Gpu,
    KernelChoice, KeyOrValue, KeyValues, MatrixShape, NormInput, NormKind, NormRows, Precision, Queries,
    QueryNorm, Recorder, RopeCache, Span, Window, head_stride, padded, rope_angles, sinusoidal_positions,
};
use proptest::prelude::*;

use crate::{
    reference::{embedding::embedding, layer_norm::layer_norm, rms_norm::rms_norm, rope_cache::rope},
    support::{
        Guarded, assert_close, assert_close_in, assert_repeatable,
        cache::{AttentionShape, GuardedCache, Most, cache_precision, most, sections},
        check, gpu, hash, matrix, noise, pad, precision, read, run, size, stored, upload,
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
    scale: f32,
    ids: &[u32],
) -> Vec<f64> {
    let gpu = device();
    let table = matrix(gpu, MatrixShape::dense(vocab, width), precision, part_rows, table);
    let x = Guarded::rows(gpu, ids.len(), width);
    let tokens = ids.len() as u32;
    let ids = Buffer::with_data(gpu, "test.ids", ids);
    run(gpu, |recorder| {
        Embedding { ids: &ids, table: &table, x: &x.buffer, tokens, scale }.record(recorder);
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
        let got = embed(&table, vocab, width, 8 * part_blocks, precision, 1.0, &ids);
        let expected = embedding(&table, width as usize, &ids);
        assert_eq!(got, expected);
        let scale = f64::from(width).sqrt() as f32;
        let got = embed(&table, vocab, width, 8 * part_blocks, precision, scale, &ids);
        // One product, so one rounding.
        assert_eq!(got, expected.iter().map(|x| f64::from(scale * *x as f32)).collect::<Vec<_>>());
    });
}

#[test]
fn an_id_out_of_range_leaves_its_row_alone() {
    let table = noise(1, 50 * 20);
    let got = embed(&table, 50, 20, 24, Precision::F32, 1.0, &[3, 50, u32::MAX, 49]);
    assert_eq!(got[..20], table[3 * 20..4 * 20]);
    assert!(got[20..60].iter().copied().all(Guarded::is_untouched));
    assert_eq!(got[60..], table[49 * 20..]);
}

#[test]
fn embedding_gives_the_same_bits_every_time() {
    let table = noise(1, 500 * 100);
    let ids = some_ids(2, 100, 500);
    assert_repeatable(|| embed(&table, 500, 100, 200, Precision::F32, 2.5, &ids));
}

#[derive(Clone, Debug)]
struct Positions {
    width: u32,
    /// Rows of the table.
    positions: u32,
    /// (position, sequence) of each token.
    spans: Vec<[u32; 2]>,
    class_token: bool,
    seed: u64,
}

impl Positions {
    fn check(&self) -> Vec<f64> {
        let gpu = device();
        let Self { width, positions, seed, .. } = *self;
        let tokens = self.spans.len();
        let x = noise(seed, tokens * width as usize);
        let table = noise(seed + 1, (positions * width) as usize);
        let class = noise(seed + 2, width as usize);
        let on_gpu = Guarded::holding(gpu, 0, &pad(&x, width));
        let (table_on_gpu, class_on_gpu) = (upload(gpu, &table, width), upload(gpu, &class, width));
        let span = |&[position, sequence]: &[u32; 2]| Span::seeing(position, sequence, 1);
        let words = Span::words(&self.spans.iter().map(span).collect::<Vec<_>>());
        let spans = Buffer::with_data(gpu, "test.spans", &words);
        run(gpu, |recorder| {
            AddPositions {
                spans: &spans,
                table: &table_on_gpu,
                class_token: self.class_token.then_some(&class_on_gpu),
                x: &on_gpu.buffer,
                tokens: tokens as u32,
                width,
            }
            .record(recorder);
        });
        let mut expected = Vec::new();
        for (x, &[position, _]) in x.chunks_exact(width as usize).zip(&self.spans) {
            let x = if self.class_token && position == 0 { &class } else { x };
            let row = &table[(position.min(positions - 1) * width) as usize..][..width as usize];
            expected.extend(x.iter().zip(row).map(|(x, position)| x + position));
        }
        let got = on_gpu.read_rows(width);
        assert_close(&got, &expected, self);
        got
    }
}

#[test]
fn add_positions_adds_each_tokens_row_and_puts_the_class_token_first() {
    let any = (size(300), size(40), size(20), any::<bool>(), any::<u64>());
    check(96, any, |(width, positions, tokens, class_token, seed)| {
        let span = |i| [(hash(seed, i) % u64::from(positions)) as u32, i as u32 % 3];
        let mut spans: Vec<[u32; 2]> = (0..tokens as usize).map(span).collect();
        spans[seed as usize % tokens as usize][0] = 0;
        Positions { width, positions, spans, class_token, seed }.check();
    });
}

#[test]
fn add_positions_takes_the_last_position_for_one_out_of_range() {
    let spans = vec![[7, 0], [8, 0], [u32::MAX, 1], [0, 0]];
    Positions { width: 13, positions: 8, spans, class_token: true, seed: 1 }.check();
}

#[test]
fn add_positions_gives_the_same_bits_every_time() {
    let spans: Vec<[u32; 2]> = (0..40).map(|i| [i, 0]).collect();
    for class_token in [false, true] {
        let positions = Positions { width: 100, positions: 40, spans: spans.clone(), class_token, seed: 2 };
        assert_repeatable(|| positions.check());
    }
}

/// fairseq's table: sines, then cosines, of frequencies from 1 down to 1/10000, both included.
#[test]
fn sinusoidal_positions_are_fairseqs() {
    for (positions, width, offset) in [(1, 2, 0), (9, 4, 1), (40, 36, 2), (1000, 64, 2), (7, 5, 0)] {
        let table = sinusoidal_positions(device(), positions, width, offset);
        let stride = padded(width) as usize;
        let got: Vec<f32> = read(device(), &table, positions as usize * stride);
        let half = width / 2;
        for (position, row) in (offset..).zip(got.chunks_exact(stride)) {
            for i in 0..half {
                let exponent = f64::from(i) / f64::from(half.max(2) - 1);
                let angle = f64::from(position) * 1e4f64.powf(-exponent);
                let found = [row[i as usize], row[(half + i) as usize]].map(f64::from);
                assert_close(&found, &[angle.sin(), angle.cos()], (position, i));
            }
            // An odd width ends in zero, as the padding does.
            assert!(row[2 * half as usize..].iter().all(|&value| value == 0.0));
        }
    }
}

/// Norms the rows `chosen` of x, or all of them; with a bias it is a LayerNorm.
fn norm(x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f32, chosen: Option<&[u32]>) -> Vec<f64> {
    let gpu = device();
    let width = weight.len() as u32;
    let count = chosen.map_or(x.len() / weight.len(), <[u32]>::len);
    let x = upload(gpu, x, width);
    let rows = chosen.map(|chosen| Buffer::with_data(gpu, "test.rows", chosen));
    let input = rows.as_ref().map_or(NormInput::Rows(&x), |rows| NormInput::Chosen(&x, rows));
    norm_into(Guarded::rows(gpu, count, width), input, weight, bias, eps)
}

/// Norms the rows where they stand.
fn norm_in_place(x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f32) -> Vec<f64> {
    let y = Guarded::holding(device(), 0, &pad(x, weight.len() as u32));
    norm_into(y, NormInput::InPlace, weight, bias, eps)
}

fn norm_into(y: Guarded, x: NormInput<'_>, weight: &[f64], bias: Option<&[f64]>, eps: f32) -> Vec<f64> {
    let gpu = device();
    let width = weight.len() as u32;
    let kind = if bias.is_some() { NormKind::Layer } else { NormKind::Rms };
    let weights = upload(gpu, &[weight, bias.unwrap_or(&[])].concat(), width);
    let count = y.words() as u32 / padded(width);
    run(gpu, |recorder| {
        NormRows { kind, x, weights: &weights, y: &y.buffer, count, width, eps }.record(recorder);
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
        assert_eq!(norm_in_place(&x, &weight, None, eps), all, "in place");
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
        let all = norm(&x, &weight, Some(&bias), eps, None);
        assert_close(&all, &expected(&x), "all rows");
        assert_eq!(norm_in_place(&x, &weight, Some(&bias), eps), all, "in place");
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
    assert_repeatable(|| norm_in_place(&x, &weight, Some(&bias), 1e-5));
}

/// Heads of `channels` floats, each padded with zeros to whole vec4s.
fn spread(values: &[f64], channels: u32) -> Vec<f64> {
    let stride = head_stride(channels) as usize;
    let padded = |head: &[f64]| (0..stride).map(|i| head.get(i).copied().unwrap_or(0.0)).collect::<Vec<_>>();
    values.chunks_exact(channels as usize).flat_map(padded).collect()
}

/// The lengths of queries `[tokens, heads, head_dim]` from a head on, and what the oracle says.
fn query_norms(q: &[f64], tokens: u32, heads: u32, first_head: u32, head_dim: u32) -> [Vec<f64>; 2] {
    let gpu = device();
    let measured = heads - first_head;
    let of_token = |q: &[f64]| -> Vec<f64> {
        let heads = q.chunks_exact(head_dim as usize).skip(first_head as usize);
        heads.map(crate::reference::router::norm).collect()
    };
    let expected = q.chunks_exact((heads * head_dim) as usize).flat_map(of_token).collect();
    let q = upload(gpu, &spread(q, head_dim), heads * head_stride(head_dim));
    // The padding is zero before; the kernel must leave it so.
    let scores = Guarded::holding(gpu, 0, &pad(&vec![777.0; (tokens * measured) as usize], measured.max(1)));
    run(gpu, |recorder| {
        QueryNorm { q: &q, scores: &scores.buffer, tokens, heads, first_head, head_dim }.record(recorder);
    });
    [scores.read_rows(measured.max(1)), expected]
}

#[test]
fn query_norm_is_the_length_of_each_query() {
    let any = (size(9), prop_oneof![4 => size(20), 1 => size(150)], any::<u32>(), size(130), any::<u64>());
    check(64, any, |(tokens, heads, first, head_dim, seed)| {
        let q = noise(seed, (tokens * heads * head_dim) as usize);
        for first_head in [0, first % heads, heads] {
            let [got, expected] = query_norms(&q, tokens, heads, first_head, head_dim);
            assert_close(&got, &expected, "scores");
        }
    });
}

#[test]
fn query_norm_gives_the_same_bits_every_time() {
    let q = noise(1, 30 * 70 * 25);
    assert_repeatable(|| query_norms(&q, 30, 70, 2, 25)[0].clone());
}

#[derive(Clone, Debug)]
struct Append {
    shape: AttentionShape,
    half: KeyOrValue,
    /// (slot, sequence) of each token.
    spans: Vec<[u32; 2]>,
    /// The first column of a source row, and columns after the last.
    first: u32,
    more: u32,
    seed: u64,
}

fn any_append() -> impl Strategy<Value = Append> {
    let sizes = (size(5), [size(70), size(70)], size(40), 1..=3u32);
    let of_cache = (cache_precision(), most());
    (sizes, size(12), 0..9u32, 0..20u32, any::<u64>(), of_cache).prop_map(
        |((kv_heads, dims, capacity, sequences), tokens, first_quads, more, seed, (cache, most))| {
            let head_spans = seed % 3 == 0;
            let [key_dim, value_dim] = dims;
            let half = if seed % 2 == 0 { KeyOrValue::Key } else { KeyOrValue::Value };
            let shape = AttentionShape {
                kv_heads,
                key_dim,
                value_dim,
                capacity,
                sequences,
                head_spans,
                cache,
                most,
                ..ROPE
            };
            // Different places: two tokens at one place would race.
            let places = capacity * sequences;
            let place = |i| (i + seed as u32 % places) % places;
            let spans =
                (0..tokens.min(places)).map(|i| [place(i) / sequences, place(i) % sequences]).collect();
            Append { shape, half, spans, first: 4 * first_quads, more, seed }
        },
    )
}

impl Append {
    /// Appends; the values are copied, so the comparison is exact.
    fn check(&self) -> Vec<f64> {
        let gpu = device();
        let AttentionShape { kv_heads, key_dim, value_dim, capacity, sequences, .. } = self.shape;
        let (head_dim, half) = match self.half {
            KeyOrValue::Key => (key_dim, 0),
            KeyOrValue::Value => (value_dim, 1),
        };
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
        let [keys, values] = self.shape.cache_floats();
        let mut expected = [noise(self.seed + 1, keys), noise(self.seed + 2, values)];
        let cache = GuardedCache::new(gpu, &self.shape, &expected[0], &expected[1]);
        let words = span_words(&self.shape, &self.spans, 3);
        let spans = Buffer::with_data(gpu, "test.spans", &words);
        let src_on_gpu = upload(gpu, &src, src_width);
        run(gpu, |recorder| {
            CacheAppend {
                heads: self.shape.head_layout(),
                spans: &spans,
                src: &src_on_gpu,
                src_width,
                first: self.first,
                half: self.half,
                cache: &cache.kv,
                tokens,
            }
            .record(recorder);
        });
        for (token, (row, &[slot, sequence])) in
            src.chunks_exact(src_width as usize).zip(&self.spans).enumerate()
        {
            let place = sequence.min(sequences - 1) * capacity + slot.min(capacity - 1);
            let (stride, d) = (head_stride(head_dim) as usize, head_dim as usize);
            for head in 0..kv_heads as usize {
                if self.shape.head_spans && words[token * kv_heads as usize + head][4] == 0 {
                    continue;
                }
                let from = &row[self.first as usize + head * stride..][..d];
                expected[half][(place as usize * kv_heads as usize + head) * d..][..d].copy_from_slice(from);
            }
        }
        let got = cache.read();
        let expected = [self.shape.cached_keys(&expected[0]), self.shape.cached_values(&expected[1])];
        assert_eq!(got, expected);
        got.concat()
    }
}

#[test]
fn cache_append_copies_columns_to_their_places_and_nothing_else() {
    check(96, any_append(), |append| {
        append.check();
    });
}

#[test]
fn appending_finds_the_section_of_each_slot() {
    check(64, (any_append(), any_rope(), sections()), |(append, rope, most)| {
        Append { shape: AttentionShape { most, ..append.shape }, ..append }.check();
        Rope { shape: AttentionShape { most, ..rope.shape }, ..rope }.check();
    });
}

#[test]
fn cache_append_takes_the_last_place_for_one_out_of_range() {
    let shape = AttentionShape { capacity: 9, ..ROPE };
    for spans in [vec![[9, 0], [u32::MAX, 7], [1, 0]], vec![[3, 2], [4, u32::MAX]]] {
        Append { shape, half: KeyOrValue::Value, spans, first: 8, more: 3, seed: 2 }.check();
    }
}

#[test]
fn cache_append_gives_the_same_bits_every_time() {
    let spans = (0..30).map(|i| [i / 2, i % 2]).collect();
    let shape = AttentionShape { capacity: 20, ..ROPE };
    let append = Append { shape, half: KeyOrValue::Key, spans, first: 60, more: 0, seed: 3 };
    assert_repeatable(|| append.check());
}

#[derive(Clone, Debug)]
struct Rope {
    shape: AttentionShape,
    theta: f64,
    /// Channels that turn.
    rotated: u32,
    /// Values come in a buffer of their own.
    apart: bool,
    /// (slot, sequence) of each token.
    spans: Vec<[u32; 2]>,
    /// How far positions are ahead of slots.
    ahead: u32,
    seed: u64,
}

/// The words of a token's spans: with head spans one for each head, of which every third leaves the token out.
fn span_words(shape: &AttentionShape, spans: &[[u32; 2]], ahead: u32) -> Vec<[u32; 5]> {
    let heads = if shape.head_spans { shape.kv_heads } else { 1 };
    let all = spans.iter().flat_map(|span| (0..heads).map(move |_| span));
    let span = |(i, &[slot, sequence]): (usize, &[u32; 2])| {
        let position = slot.saturating_add(ahead);
        Span { position, sequence, slot, first: 0, end: u32::from(i % 3 != 1) }
    };
    Span::words(&all.enumerate().map(span).collect::<Vec<_>>())
}

fn any_rope() -> impl Strategy<Value = Rope> {
    let sizes = (size(5), size(4), size(4), size(32), size(40), 1..=3u32);
    let theta = prop_oneof![Just(1e4), Just(5e5), Just(100.0)];
    let parts = (any::<u32>(), any::<bool>(), cache_precision(), most(), prop_oneof![Just(0), size(70)]);
    (sizes, 0..4u32, theta, parts, size(12), any::<u64>()).prop_map(
        |(sizes, queries, theta, (turned, apart, cache, most, more), tokens, seed)| {
            let (slots, heads, kv_heads, head_quads, capacity, sequences) = sizes;
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
                key_dim: 4 * head_quads,
                value_dim: if more == 0 { 4 * head_quads } else { more },
                capacity,
                sequences,
                most,
                // A span for each key/value head, and so for each query head.
                head_spans: queries == 2 && head_quads > 1,
                cache,
            };
            let shape = match shape.head_spans {
                true => AttentionShape { slots: kv_heads, heads: 1, ..shape },
                false => shape,
            };
            // Different places: two tokens at one place would race.
            let places = capacity * sequences;
            let place = |i| (i + seed as u32 % places) % places;
            let spans =
                (0..tokens.min(places)).map(|i| [place(i) / sequences, place(i) % sequences]).collect();
            let rotated = 2 * (1 + turned % (shape.key_dim / 2));
            let rotated = if apart { rotated } else { shape.key_dim };
            let ahead = (seed % 30) as u32;
            Rope { shape, theta, rotated, apart, spans, ahead, seed }
        },
    )
}

impl Rope {
    /// q, keys and values after the kernel, and after the oracle.
    fn run(&self) -> [[Vec<f64>; 3]; 2] {
        let gpu = device();
        let AttentionShape { slots, heads, kv_heads, key_dim, value_dim, capacity, sequences, .. } =
            self.shape;
        let (slots, heads) = match self.shape.queries {
            Queries::Dense { experts } => (1, experts * heads),
            Queries::BySlot | Queries::ByExpert => (slots, heads),
        };
        let (q_width, tokens) = (heads * key_dim, self.spans.len() as u32);
        let [key_width, value_stride] = [kv_heads * key_dim, kv_heads * head_stride(value_dim)];
        let q = noise(self.seed, (tokens * slots * q_width) as usize);
        let new_keys = noise(self.seed + 1, (tokens * key_width) as usize);
        let new_values = noise(self.seed + 4, (tokens * kv_heads * value_dim) as usize);
        // Places no token writes keep what they have.
        let [keys, values] = self.shape.cache_floats();
        let (keys, values) = (noise(self.seed + 2, keys), noise(self.seed + 3, values));

        let q_on_gpu = Guarded::holding(gpu, 0, &pad(&q, q_width));
        let cache = GuardedCache::new(gpu, &self.shape, &keys, &values);
        let words = span_words(&self.shape, &self.spans, self.ahead);
        let spans = Buffer::with_data(gpu, "test.spans", &words);
        let angles = rope_angles(gpu, capacity + self.ahead, self.rotated, self.theta);
        // Heads come padded.
        let value_heads = new_values.chunks_exact(value_dim as usize);
        let padding = (head_stride(value_dim) - value_dim) as usize;
        let padded_values: Vec<f64> =
            value_heads.flat_map(|head| [head, &vec![0.0; padding]].concat()).collect();
        let rows =
            new_keys.chunks_exact(key_width as usize).zip(padded_values.chunks_exact(value_stride as usize));
        let kv: Vec<f64> = rows.flat_map(|(keys, values)| [keys, values].concat()).collect();
        let (keys_on_gpu, values_on_gpu) = match self.apart {
            true => (upload(gpu, &new_keys, key_width), Some(upload(gpu, &padded_values, value_stride))),
            false => (upload(gpu, &kv, key_width + value_stride), None),
        };
        run(gpu, |recorder| {
            RopeCache {
                heads: self.shape.head_layout(),
                spans: &spans,
                angles: &angles,
                rotated: self.rotated,
                q: &q_on_gpu.buffer,
                keys: &keys_on_gpu,
                values: values_on_gpu.as_ref(),
                cache: &cache.kv,
                tokens,
            }
            .record(recorder);
        });
        let [got_keys, got_values] = cache.read();
        let got = [q_on_gpu.read_rows(q_width), got_keys, got_values];

        let (mut q, mut keys, mut values) = (q, keys, values);
        let (d, value_d) = (key_dim as usize, value_dim as usize);
        for (token, &[slot, sequence]) in self.spans.iter().enumerate() {
            // The kernel takes the last place for one out of range, and the last angles.
            let position = slot.saturating_add(self.ahead).min(capacity + self.ahead - 1);
            let (slot, sequence) = (slot.min(capacity - 1), sequence.min(sequences - 1));
            let used =
                |head: u32| !self.shape.head_spans || words[(token as u32 * kv_heads + head) as usize][4] > 0;
            for head in (0..slots * heads).filter(|&head| used(head)) {
                let at = (token as u32 * slots * heads + head) as usize * d;
                rope(&mut q[at..][..self.rotated as usize], position, self.theta);
            }
            for head in (0..kv_heads).filter(|&head| used(head)) {
                let from = (token as u32 * kv_heads + head) as usize;
                let to = ((sequence * capacity + slot) * kv_heads + head) as usize;
                values[to * value_d..][..value_d].copy_from_slice(&new_values[from * value_d..][..value_d]);
                let key = &mut keys[to * d..][..d];
                key.copy_from_slice(&new_keys[from * d..][..d]);
                rope(&mut key[..self.rotated as usize], position, self.theta);
            }
        }
        [got, [q, keys, values]]
    }

    fn check(&self) -> Vec<f64> {
        let [[q, keys, values], [expected_q, expected_keys, expected_values]] = self.run();
        assert_close(&q, &expected_q, "q");
        assert_close_in(self.shape.cache, &keys, &expected_keys, "keys");
        assert_eq!(values, self.shape.cached_values(&expected_values), "values are copied");
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
    key_dim: 20,
    value_dim: 20,
    capacity: 4000,
    sequences: 2,
    head_spans: false,
    cache: CachePrecision::F32,
    most: Most::Everything,
};

/// Angles come from a table made in f64, so they do not lose precision far from position 0.
#[test]
fn rope_cache_is_exact_at_large_positions() {
    Rope {
        shape: ROPE,
        theta: 1e4,
        rotated: 20,
        apart: false,
        spans: vec![[3999, 0], [3998, 1], [2047, 0]],
        ahead: 0,
        seed: 1,
    }
    .check();
}

#[test]
fn rope_cache_takes_the_last_place_for_one_out_of_range() {
    Rope {
        shape: ROPE,
        theta: 1e4,
        rotated: 20,
        apart: false,
        spans: vec![[4000, 0], [u32::MAX, 7], [1, 0]],
        ahead: 0,
        seed: 2,
    }
    .check();
}

#[test]
fn rope_cache_gives_the_same_bits_every_time() {
    let spans: Vec<[u32; 2]> = (0..30).map(|i| [i / 2, i % 2]).collect();
    let shape = AttentionShape { capacity: 20, ..ROPE };
    for (rotated, apart) in [(20, false), (12, true)] {
        let rope = Rope { shape, theta: 1e4, rotated, apart, spans: spans.clone(), ahead: 5, seed: 3 };
        assert_repeatable(|| rope.check());
    }
}

#[derive(Clone, Debug)]
struct Reorder {
    shape: AttentionShape,
    positions: u32,
    parents: Vec<u32>,
    seed: u64,
}

impl Reorder {
    fn check(&self) -> Vec<f64> {
        let (gpu, shape) = (device(), &self.shape);
        let floats = shape.cache_floats();
        let noise = |salt: u64| {
            let [keys, values] = floats;
            let (keys, values) = (noise(self.seed + salt, keys), noise(self.seed + salt + 1, values));
            [shape.cached_keys(&keys), shape.cached_values(&values)]
        };
        let (from, mut expected) = (noise(0), noise(2));
        let to_on_gpu = GuardedCache::new(gpu, shape, &expected[0], &expected[1]);
        let from_on_gpu = GuardedCache::new(gpu, shape, &from[0], &from[1]);
        let parents = Buffer::with_data(gpu, "test.parents", &self.parents);
        let (from_kv, to_kv) = (&from_on_gpu.kv, &to_on_gpu.kv);
        run(gpu, |recorder| {
            CacheReorder { parents: &parents, from: from_kv, to: to_kv, filled: self.positions }
                .record(recorder);
        });
        for (expected, from) in expected.iter_mut().zip(&from) {
            let sequence = expected.len() / shape.sequences as usize;
            let part = sequence / shape.capacity as usize * self.positions as usize;
            for (own, &parent) in expected.chunks_exact_mut(sequence).zip(&self.parents) {
                let parent = parent.min(shape.sequences - 1) as usize;
                own[..part].copy_from_slice(&from[parent * sequence..][..part]);
            }
        }
        let got = to_on_gpu.read();
        assert_eq!(got, expected);
        got.concat()
    }
}

#[test]
fn cache_reorder_copies_the_parents_positions_and_nothing_else() {
    let sizes = (size(5), [size(70), size(70)], size(40), size(7));
    let most = prop_oneof![2 => most(), 1 => sections()];
    let any = (sizes, any::<u32>(), any::<u64>(), cache_precision(), most);
    check(96, any, |((kv_heads, dims, capacity, sequences), positions, seed, cache, most)| {
        let [key_dim, value_dim] = dims;
        let shape = AttentionShape { kv_heads, key_dim, value_dim, capacity, sequences, cache, most, ..ROPE };
        let parents = some_ids(seed, sequences, sequences);
        Reorder { shape, positions: positions % (capacity + 1), parents, seed }.check();
    });
}

/// A sequence's bytes are the same however its cache is cut, and find their places again.
#[test]
fn a_sequence_reads_alike_from_any_windows() {
    let gpu = device();
    for cache in [CachePrecision::F32, CachePrecision::F16] {
        let of = |most| AttentionShape {
            capacity: 9,
            kv_heads: 5,
            value_dim: 12,
            sequences: 3,
            cache,
            most,
            ..ROPE
        };
        let [keys, values] = of(Most::Everything).cache_floats();
        let (keys, values) = (noise(1, keys), noise(2, values));
        let read = |most| {
            let shape = of(most);
            let on_gpu = GuardedCache::new(gpu, &shape, &keys, &values);
            let ranges = on_gpu.kv.ranges(2, 4);
            let bytes =
                pollster::block_on(Recorder::new(gpu).submit_and_read(&ranges).wait("reading")).unwrap();
            let in_order = on_gpu.kv.in_order(4, &bytes);
            assert_eq!(on_gpu.kv.by_window(4, &in_order), bytes);
            assert_eq!(on_gpu.kv.layout.sequence_bytes(4), bytes.len() as u64);
            in_order
        };
        // Of one window the order is its own.
        let whole = read(Most::Everything);
        assert_eq!(read(Most::Half), whole);
        assert_eq!(read(Most::Head), whole);
        // Four slots are all of the first section, or end in the second.
        assert_eq!(read(Most::Sections(2)), whole);
        assert_eq!(read(Most::Sections(4)), whole);
    }
}

/// What a cache holds is copied to one that has more slots, and so more sections, of which the last may be longer.
#[test]
fn sections_are_copied_to_those_of_a_longer_cache() {
    let gpu = device();
    let of = |capacity, cut: [u32; 3]| {
        let shape = AttentionShape { capacity, kv_heads: 3, sequences: 2, ..ROPE };
        let layout = shape.cache_layout();
        let buffer = |window: &Window| Buffer::new(gpu, "test.window", layout.bytes_of(window));
        let cached = |window| CachedWindow { buffer: buffer(&window), window };
        KeyValues { layout, windows: layout.cut(cut).into_iter().map(cached).collect() }
    };
    for filled in [1, 4, 5, 8, 9] {
        let (from, to) = (of(9, [1, 4, 2]), of(21, [1, 4, 2]));
        assert_eq!((from.sections(), to.sections()), (3, 6));
        let bytes: Vec<u8> = noise(1, from.layout.sequence_bytes(filled) as usize)
            .iter()
            .map(|x| (x * 100.0) as i8 as u8)
            .collect();
        let mut rest = &from.by_window(filled, &bytes)[..];
        for (buffer, offset, count) in from.ranges(1, filled) {
            let (now, later) = rest.split_at(count as usize);
            buffer.write(offset, now);
            rest = later;
        }
        let mut recorder = Recorder::new(gpu);
        recorder.copy(&from.copies(1, &to, 0, filled));
        let read = recorder.submit_and_read(&to.ranges(0, filled));
        let read = pollster::block_on(read.wait("reading")).unwrap();
        assert_eq!(to.in_order(filled, &read), bytes, "{filled} slots");
    }
}

#[test]
fn cache_reorder_takes_the_last_sequence_for_one_out_of_range() {
    let shape = AttentionShape { capacity: 9, sequences: 3, ..ROPE };
    Reorder { shape, positions: 7, parents: vec![3, u32::MAX, 0], seed: 2 }.check();
}

#[test]
fn cache_reorder_gives_the_same_bits_every_time() {
    let shape = AttentionShape { capacity: 50, sequences: 4, ..ROPE };
    let reorder = Reorder { shape, positions: 41, parents: vec![2, 2, 0, 1], seed: 3 };
    assert_repeatable(|| reorder.check());
}

/// Copies `quads` quads into a buffer that has more room.
fn copy(quads: u32, each: u32, runs: bool, seed: u64) {
    let gpu = device();
    let words: Vec<u32> = (0..4 * quads as usize).map(|i| hash(seed, i) as u32).collect();
    let src = Buffer::with_data(gpu, "test.src", &words);
    let dst = Guarded::new(gpu, 0, words.len());
    run(gpu, |recorder| Copy { src: &src, dst: &dst.buffer, quads, each, runs }.record(recorder));
    // Reading checks the guards behind them.
    assert!(dst.read::<u32>() == words, "{quads} quads, {each} an invocation, runs: {runs}");
}

#[test]
fn copy_copies_every_quad_and_no_more() {
    check(32, (size(3000), 1..=20u32, any::<(bool, u64)>()), |(quads, fours, (runs, seed))| {
        copy(quads, 4 * fours, runs, seed);
    });
}
