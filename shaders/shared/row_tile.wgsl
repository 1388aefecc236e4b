// Softmax attention of a tile of query rows that read one key/value head, by a workgroup that is one whole subgroup: no
// workgroup memory, no barrier. For software adapters, which pay for every buffer load of every lane.
//
// Scores: a lane takes four keys, start + lane + LANES·(0 … 3), and loads the query of row lane % ROWS, which all lanes get
// from it. Values: a lane takes COLUMNS vec4s of the head, every LANES-th, and gets the weights of a key from the key's lane.
// Both keys and values are loaded once for all rows of the tile.
//
// The including file has `query_quad`, vec4 i of the query of this lane's row, and `store`. A block of 4·LANES keys takes
// 5 to 9 turns and one for each 8 channels of a head: of llvmpipe's 65,535 (see row_attention_prefill), 50,000 keys with heads of
// 128 and subgroups of 4.

//!needs var params, const LOWEST, fn key_at, fn value_at, fn cached_eight, fn cached_quad, fn query_quad, fn store

// Invocations of a subgroup: 4, 8 or 16.
override LANES: u32 = 8u;
// Rows of a tile: 1, 2, 4 or 8, at most LANES.
override ROWS: u32 = 8u;
// Vec4s of a head that a lane takes: 1, 2 or 4.
override COLUMNS: u32 = 4u;

// A vec4 of each row.
struct Rows {
    r0: vec4<f32>, r1: vec4<f32>, r2: vec4<f32>, r3: vec4<f32>,
    r4: vec4<f32>, r5: vec4<f32>, r6: vec4<f32>, r7: vec4<f32>,
}

// A number of each row: of rows 0 … 3, of rows 4 … 7.
struct PerRow {
    a: vec4<f32>,
    b: vec4<f32>,
}

// What each row sees: slots from `first` to before `end`.
struct Visible {
    first_a: vec4<u32>,
    first_b: vec4<u32>,
    end_a: vec4<u32>,
    end_b: vec4<u32>,
}

// The same slots for all rows.
fn all_see(first: u32, end: u32) -> Visible {
    return Visible(vec4<u32>(first), vec4<u32>(first), vec4<u32>(end), vec4<u32>(end));
}

// What the rows have seen so far: the highest score, this lane's part of the sum of weights, and the weighted sum of values
// in this lane's columns.
var<private> highest: PerRow;
var<private> total: PerRow;
var<private> sums0: Rows;
var<private> sums1: Rows;
var<private> sums2: Rows;
var<private> sums3: Rows;

// Query heads that read key/value head c are h = c·group + i (i < group), repeated every kv_heads·group heads.
fn head_of(kv_head: u32, i: u32) -> u32 {
    return (i / params.group) * params.kv_heads * params.group + kv_head * params.group + i % params.group;
}

fn rows_see_nothing() {
    highest = PerRow(vec4<f32>(LOWEST), vec4<f32>(LOWEST));
    total = PerRow();
    sums0 = Rows();
    sums1 = Rows();
    sums2 = Rows();
    sums3 = Rows();
}

// Scores of one row for this lane's four keys.
fn scores(lo: vec4<f32>, hi: vec4<f32>, k0: Eight, k1: Eight, k2: Eight, k3: Eight) -> vec4<f32> {
    return lo * mat4x4<f32>(k0.lo, k1.lo, k2.lo, k3.lo) + hi * mat4x4<f32>(k0.hi, k1.hi, k2.hi, k3.hi);
}

struct Weighed {
    weights: vec4<f32>,
    highest: f32,
    rescale: f32,
}

fn weigh(score: vec4<f32>, keys: vec4<u32>, first: u32, end: u32, before: f32) -> Weighed {
    // What lies before the first wraps to more than there are.
    let seen = keys - vec4<u32>(first) < vec4<u32>(end - first);
    let scaled = select(vec4<f32>(LOWEST), score * params.scale, seen);
    let pairs = max(scaled.xy, scaled.zw);
    let now = max(before, subgroupMax(max(pairs.x, pairs.y)));
    return Weighed(select(vec4<f32>(0.0), exp(scaled - now), seen), now, exp(before - now));
}

fn sum4(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

// Here the slots from `first` to before `end`: no row sees others in this split.
fn attend(lane: u32, sequence: u32, kv_head: u32, first: u32, end: u32, visible: Visible) {
    let last = max(end, 1u) - 1u;
    let eights = (params.key_quads + 1u) / 2u;
    let whole = params.key_quads / 2u;
    for (var start = first; start < end; start += 4u * LANES) {
        let keys = vec4<u32>(start + lane) + vec4<u32>(0u, LANES, 2u * LANES, 3u * LANES);
        let at0 = key_at(sequence, min(keys.x, last), kv_head);
        let at1 = key_at(sequence, min(keys.y, last), kv_head);
        let at2 = key_at(sequence, min(keys.z, last), kv_head);
        let at3 = key_at(sequence, min(keys.w, last), kv_head);
        var s = Rows();
        for (var i = 0u; i < eights; i++) {
            let k0 = cached_eight(at0 + i);
            let k1 = cached_eight(at1 + i);
            let k2 = cached_eight(at2 + i);
            let k3 = cached_eight(at3 + i);
            let lo = query_quad(2u * i);
            // A head of an odd number of vec4s has none here; its keys are padded.
            let hi = select(vec4<f32>(0.0), query_quad(min(2u * i + 1u, params.key_quads - 1u)), i < whole);
            s.r0 += scores(subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u), k0, k1, k2, k3);
            if ROWS > 1u {
                s.r1 += scores(subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u), k0, k1, k2, k3);
            }
            if ROWS > 2u {
                s.r2 += scores(subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u), k0, k1, k2, k3);
                s.r3 += scores(subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u), k0, k1, k2, k3);
            }
            if ROWS > 4u {
                s.r4 += scores(subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u), k0, k1, k2, k3);
                s.r5 += scores(subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u), k0, k1, k2, k3);
                s.r6 += scores(subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u), k0, k1, k2, k3);
                s.r7 += scores(subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u), k0, k1, k2, k3);
            }
        }

        // Scores become weights.
        var rescale = PerRow();
        var row = weigh(s.r0, keys, visible.first_a.x, visible.end_a.x, highest.a.x);
        s.r0 = row.weights; highest.a.x = row.highest; rescale.a.x = row.rescale;
        if ROWS > 1u {
            row = weigh(s.r1, keys, visible.first_a.y, visible.end_a.y, highest.a.y);
            s.r1 = row.weights; highest.a.y = row.highest; rescale.a.y = row.rescale;
        }
        if ROWS > 2u {
            row = weigh(s.r2, keys, visible.first_a.z, visible.end_a.z, highest.a.z);
            s.r2 = row.weights; highest.a.z = row.highest; rescale.a.z = row.rescale;
            row = weigh(s.r3, keys, visible.first_a.w, visible.end_a.w, highest.a.w);
            s.r3 = row.weights; highest.a.w = row.highest; rescale.a.w = row.rescale;
        }
        if ROWS > 4u {
            row = weigh(s.r4, keys, visible.first_b.x, visible.end_b.x, highest.b.x);
            s.r4 = row.weights; highest.b.x = row.highest; rescale.b.x = row.rescale;
            row = weigh(s.r5, keys, visible.first_b.y, visible.end_b.y, highest.b.y);
            s.r5 = row.weights; highest.b.y = row.highest; rescale.b.y = row.rescale;
            row = weigh(s.r6, keys, visible.first_b.z, visible.end_b.z, highest.b.z);
            s.r6 = row.weights; highest.b.z = row.highest; rescale.b.z = row.rescale;
            row = weigh(s.r7, keys, visible.first_b.w, visible.end_b.w, highest.b.w);
            s.r7 = row.weights; highest.b.w = row.highest; rescale.b.w = row.rescale;
        }
        total.a = total.a * rescale.a + vec4<f32>(sum4(s.r0), sum4(s.r1), sum4(s.r2), sum4(s.r3));
        total.b = total.b * rescale.b + vec4<f32>(sum4(s.r4), sum4(s.r5), sum4(s.r6), sum4(s.r7));
        rescale_columns(rescale);

        // Keys in turns of at most eight.
        let each = min(LANES, 8u);
        for (var turn = 0u; turn < 4u * LANES / each; turn++) {
            let key = start + turn * each;
            if key >= end {
                break;
            }
            let m = turn * each / LANES;
            var a = vec4<f32>(s.r0[m], s.r1[m], s.r2[m], s.r3[m]);
            var b = vec4<f32>(s.r4[m], s.r5[m], s.r6[m], s.r7[m]);
            if LANES > 8u {
                // The weights of this turn's keys go to the first eight lanes.
                let holder = (lane + turn * each) % LANES;
                a = subgroupShuffle(a, holder);
                b = subgroupShuffle(b, holder);
            }
            let from0 = 2u * value_at(sequence, key, kv_head);
            // Keys past the last weigh nothing; their place may be anyone's, so the last one's is read.
            let left = last - key;
            take(lane, from0, subgroupBroadcast(a, 0u), subgroupBroadcast(b, 0u));
            take(lane, next(from0, 1u, left), subgroupBroadcast(a, 1u), subgroupBroadcast(b, 1u));
            take(lane, next(from0, 2u, left), subgroupBroadcast(a, 2u), subgroupBroadcast(b, 2u));
            take(lane, next(from0, 3u, left), subgroupBroadcast(a, 3u), subgroupBroadcast(b, 3u));
            if LANES > 4u {
                take(lane, next(from0, 4u, left), subgroupBroadcast(a, 4u), subgroupBroadcast(b, 4u));
                take(lane, next(from0, 5u, left), subgroupBroadcast(a, 5u), subgroupBroadcast(b, 5u));
                take(lane, next(from0, 6u, left), subgroupBroadcast(a, 6u), subgroupBroadcast(b, 6u));
                take(lane, next(from0, 7u, left), subgroupBroadcast(a, 7u), subgroupBroadcast(b, 7u));
            }
        }
    }
}

fn next(from0: u32, keys: u32, left: u32) -> u32 {
    return from0 + min(keys, left) * 2u * params.cache.heads * params.cache.value_eights;
}

// This lane's column c, clamped to the head.
fn column(lane: u32, c: u32) -> u32 {
    return min(lane + c * LANES, params.value_quads - 1u);
}

// Adds the weighted value of the key at `at`.
fn take(lane: u32, at: u32, a: vec4<f32>, b: vec4<f32>) {
    add(&sums0, cached_quad(at + column(lane, 0u)), a, b);
    if COLUMNS > 1u {
        add(&sums1, cached_quad(at + column(lane, 1u)), a, b);
    }
    if COLUMNS > 2u {
        add(&sums2, cached_quad(at + column(lane, 2u)), a, b);
        add(&sums3, cached_quad(at + column(lane, 3u)), a, b);
    }
}

fn add(sums: ptr<private, Rows>, v: vec4<f32>, a: vec4<f32>, b: vec4<f32>) {
    (*sums).r0 += a.x * v;
    if ROWS > 1u {
        (*sums).r1 += a.y * v;
    }
    if ROWS > 2u {
        (*sums).r2 += a.z * v;
        (*sums).r3 += a.w * v;
    }
    if ROWS > 4u {
        (*sums).r4 += b.x * v;
        (*sums).r5 += b.y * v;
        (*sums).r6 += b.z * v;
        (*sums).r7 += b.w * v;
    }
}

fn rescale_columns(by: PerRow) {
    scale(&sums0, by);
    if COLUMNS > 1u {
        scale(&sums1, by);
    }
    if COLUMNS > 2u {
        scale(&sums2, by);
        scale(&sums3, by);
    }
}

fn scale(sums: ptr<private, Rows>, by: PerRow) {
    (*sums).r0 *= by.a.x;
    if ROWS > 1u {
        (*sums).r1 *= by.a.y;
    }
    if ROWS > 2u {
        (*sums).r2 *= by.a.z;
        (*sums).r3 *= by.a.w;
    }
    if ROWS > 4u {
        (*sums).r4 *= by.b.x;
        (*sums).r5 *= by.b.y;
        (*sums).r6 *= by.b.z;
        (*sums).r7 *= by.b.w;
    }
}

// Adds up the lanes and stores every row.
fn finish(lane: u32) {
    total.a = subgroupAdd(total.a);
    if ROWS > 4u {
        total.b = subgroupAdd(total.b);
    }
    store_column(lane, &sums0);
    if COLUMNS > 1u {
        store_column(lane + LANES, &sums1);
    }
    if COLUMNS > 2u {
        store_column(lane + 2u * LANES, &sums2);
        store_column(lane + 3u * LANES, &sums3);
    }
}

fn store_column(i: u32, sums: ptr<private, Rows>) {
    if i >= params.value_quads {
        return;
    }
    store(0u, i, (*sums).r0, highest.a.x, total.a.x);
    if ROWS > 1u {
        store(1u, i, (*sums).r1, highest.a.y, total.a.y);
    }
    if ROWS > 2u {
        store(2u, i, (*sums).r2, highest.a.z, total.a.z);
        store(3u, i, (*sums).r3, highest.a.w, total.a.w);
    }
    if ROWS > 4u {
        store(4u, i, (*sums).r4, highest.b.x, total.b.x);
        store(5u, i, (*sums).r5, highest.b.y, total.b.y);
        store(6u, i, (*sums).r6, highest.b.z, total.b.z);
        store(7u, i, (*sums).r7, highest.b.w, total.b.w);
    }
}
