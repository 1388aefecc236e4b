// replay_routes: chosen[i] = taken[i], gates[i] = taken_gates[i], but where taken[i] is OPEN
//
// taken, chosen             [.., tokens, k] u32, from index `first`: `count` of them
// taken_gates, gates        likewise f32
// grid                      x: choices, in rows of 65,535 workgroups; y: those rows

struct Params {
    first: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> taken: array<u32>;
@group(0) @binding(2) var<storage, read> taken_gates: array<f32>;
@group(0) @binding(3) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(4) var<storage, read_write> gates: array<f32>;

// The choice of a token that chooses by itself.
const OPEN: u32 = 0xfffffffeu;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let choice = at.y * 65535u * 64u + at.x;
    if choice >= params.count {
        return;
    }
    let i = params.first + choice;
    if taken[i] != OPEN {
        chosen[i] = taken[i];
        gates[i] = taken_gates[i];
    }
}
