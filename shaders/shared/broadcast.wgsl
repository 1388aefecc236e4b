// A workgroup that is one subgroup of LANES lanes (4, 8 or a multiple of 8): what all lanes need, one of them loads and
// the others get by broadcast. On software adapters every lane pays for its own load about what 15 multiply-adds cost,
// and next to nothing for a broadcast.

override LANES: u32 = 8u;

struct Quads {
    q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>,
    q4: vec4<f32>, q5: vec4<f32>, q6: vec4<f32>, q7: vec4<f32>,
}

// Eight quads, the i-th from lane i; with 4 lanes the last four from `high` of lanes 0 … 3.
fn spread(low: vec4<f32>, high: vec4<f32>) -> Quads {
    var quads: Quads;
    quads.q0 = subgroupBroadcast(low, 0u);
    quads.q1 = subgroupBroadcast(low, 1u);
    quads.q2 = subgroupBroadcast(low, 2u);
    quads.q3 = subgroupBroadcast(low, 3u);
    if LANES < 8u {
        quads.q4 = subgroupBroadcast(high, 0u);
        quads.q5 = subgroupBroadcast(high, 1u);
        quads.q6 = subgroupBroadcast(high, 2u);
        quads.q7 = subgroupBroadcast(high, 3u);
    } else {
        quads.q4 = subgroupBroadcast(low, 4u);
        quads.q5 = subgroupBroadcast(low, 5u);
        quads.q6 = subgroupBroadcast(low, 6u);
        quads.q7 = subgroupBroadcast(low, 7u);
    }
    return quads;
}
