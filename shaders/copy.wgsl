// copy: dst[i] = src[i]: what memory can do at best, the yardstick of `headwise bench`
//
// src, dst   [quads] vec4<u32>
// grid       x, y: workgroups of 64 · EACH consecutive quads, counted row after row

struct Params {
    quads: u32,
    groups_x: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<u32>>;

// Quads that one invocation copies, a workgroup's width apart.
override EACH: u32 = 4u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * params.groups_x + group.x) * 64u * EACH + lane;
    for (var turn = 0u; turn < EACH; turn++) {
        let quad = first + 64u * turn;
        if quad < params.quads {
            dst[quad] = src[quad];
        }
    }
}
