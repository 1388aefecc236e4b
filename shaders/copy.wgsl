// copy: dst[i] = src[i]: what memory can do at best, the yardstick of `headwise bench`
//
// src, dst   [quads] vec4<u32>
// grid       x: workgroups of 64 · EACH quads

struct Params {
    quads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<u32>>;

// Quads that one invocation copies, a multiple of 4.
override EACH: u32 = 4u;
// An invocation's quads stand side by side, which CPUs like; otherwise a workgroup's width apart, which GPUs like.
override RUNS: bool = false;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let step = select(64u, 1u, RUNS);
    let first = group.x * 64u * EACH + lane * select(1u, EACH, RUNS);
    for (var turn = 0u; turn < EACH; turn += 4u) {
        let at = first + turn * step;
        if at + 3u * step < params.quads {
            let a = src[at];
            let b = src[at + step];
            let c = src[at + 2u * step];
            let d = src[at + 3u * step];
            dst[at] = a;
            dst[at + step] = b;
            dst[at + 2u * step] = c;
            dst[at + 3u * step] = d;
        } else {
            for (var quad = at; quad < params.quads; quad += step) {
                dst[quad] = src[quad];
            }
        }
    }
}
