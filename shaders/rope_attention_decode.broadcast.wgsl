// rope_attention_decode, for software adapters whose subgroups have one size: a workgroup is a subgroup, and takes all query
// rows of a token that share a key/value head, up to 8.
//
// Lane r turns the query of row r into the place of the row's output, where it alone reads it again until the last key; no
// lane has its results before it got that from lane r.
// grid   x: tiles of rows of each key/value head of the window, y: tokens, z: the window's splits

//!include "shared/rope_attention.wgsl"
//!include "shared/row_tile.wgsl"
//!include "shared/decode_tile.wgsl"

var<private> query_start: u32;

fn query_quad(i: u32) -> vec4<f32> {
    return out[query_start + i];
}

@compute @workgroup_size(LANES)
fn main(@builtin(subgroup_invocation_id) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let span = span_of(group.y, kv_head_of_tile(group));
    if !in_window(span.sequence, kv_head_of_tile(group)) {
        return;
    }
    find_tile(group);
    let row = min(lane % ROWS, tile.count - 1u);
    let seen = seen_in_split(span, group.z);
    query_start = out_start(row);
    let score = turn_query(lane, row, turning_position(span)) * params.scale;

    rows_see_nothing();
    if seen.first <= span.slot && span.slot < seen.end {
        // The own key comes first: its weight is 1, counted once for all lanes.
        highest.a = vec4<f32>(
            subgroupBroadcast(score, 0u), subgroupBroadcast(score, 1u),
            subgroupBroadcast(score, 2u), subgroupBroadcast(score, 3u));
        if ROWS > 4u {
            highest.b = vec4<f32>(
                subgroupBroadcast(score, 4u), subgroupBroadcast(score, 5u),
                subgroupBroadcast(score, 6u), subgroupBroadcast(score, 7u));
        }
        let once = select(0.0, 1.0, lane == 0u);
        total = PerRow(vec4<f32>(once), vec4<f32>(once));
        sums0 = own_column(lane, 0u);
        if COLUMNS > 1u {
            sums1 = own_column(lane, 1u);
        }
        if COLUMNS > 2u {
            sums2 = own_column(lane, 2u);
            sums3 = own_column(lane, 3u);
        }
        if tile.first == 0u {
            for (var i = lane; i < max(params.cache.key_eights, params.cache.value_eights); i += LANES) {
                append(tile.token, tile.kv_head, i, span);
            }
        }
    }
    let cached = min(seen.end, span.slot);
    attend(lane, span.sequence, tile.kv_head, seen.first, cached, all_see(seen.first, cached));
    finish(lane);
}

// The own value in a column of this lane, for all rows.
fn own_column(lane: u32, c: u32) -> Rows {
    let v = own_value(tile.token, tile.kv_head, column(lane, c));
    return Rows(v, v, v, v, v, v, v, v);
}

// Turns the query of this lane's row into `out`; returns its product with the own key.
fn turn_query(lane: u32, row: u32, position: u32) -> f32 {
    let half = params.half_rotated / 4u;
    let start = query_from(tile.token, tile_head(row));
    let key = tile.token * params.kv_quads + tile.kv_head * params.key_quads;
    let writes = lane < tile.count;
    var score = 0.0;
    for (var i = 0u; i < half; i++) {
        let low = angles[2u * (position * half + i)];
        let high = angles[2u * (position * half + i) + 1u];
        let cosines = vec4<f32>(low.xz, high.xz);
        let sines = vec4<f32>(low.yw, high.yw);
        let a = q[start + i];
        let b = q[start + half + i];
        let ka = kv[key + i];
        let kb = kv[key + half + i];
        let qa = a * cosines - b * sines;
        let qb = b * cosines + a * sines;
        score += dot(qa, as_cached(ka * cosines - kb * sines)) + dot(qb, as_cached(kb * cosines + ka * sines));
        if writes {
            out[query_start + i] = qa;
            out[query_start + half + i] = qb;
        }
    }
    for (var i = 2u * half; i < params.key_quads; i++) {
        let a = q[start + i];
        score += dot(a, as_cached(kv[key + i]));
        if writes {
            out[query_start + i] = a;
        }
    }
    return score;
}
