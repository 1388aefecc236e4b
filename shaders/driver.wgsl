// driver: out[first + g] = seed + g after some turns of x = 1664525 · x + 1013904223 (mod 2³²), for `headwise selftest`: loops,
// numbers that wrap around, workgroups and parameters that a driver may lose
//
// out    [places] u32
// grid   x: places, one invocation each

struct Params {
    first: u32,
    seed: u32,
    turns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    var x = params.seed + group.x;
    for (var turn = 0u; turn < params.turns; turn++) {
        x = x * 1664525u + 1013904223u;
    }
    out[params.first + group.x] = x;
}
