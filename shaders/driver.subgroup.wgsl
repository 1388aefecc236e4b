// driver, for devices with subgroups: the size that each lane's subgroup says it has, and how many of them add up
//
// out    [64, 2] u32: size, lanes that added 1
// grid   one workgroup

struct Params {
    one: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_size) size: u32) {
    out[2u * lane] = size;
    out[2u * lane + 1u] = subgroupAdd(params.one);
}
