// What the variants of routed_matvec share: bindings, addressing and the epilogue.
//
// routed_matvec: dst[r] (+)= activation(bias + Σ_s gate(a) · W[expert(a)] · src[a / src_div]),  a = r · slots + s
//
// src     [.., 8·in_blocks] f32             weights [experts, halves, part_rows, 8·in_blocks]
// chosen  [.., rows · slots] u32, from index `first`, gates likewise f32
// bias    [8·⌈out/8⌉] f32, with EXPERT_BIAS [experts, 8·⌈out/8⌉] (one slot)      dst [rows, 4·out_quads] f32
//
// The weights are output rows `part_first` … of the whole matrix, so a large matrix is several dispatches.
// A part owns the output quads `part_quads` from its first row on; the last part owns the zero padding too.
// With SWIGLU the matrix has two halves, and silu(gate half) · (up half) is stored.
//
// With BESIDE a dense matrix follows in the same buffer, from vec4 `beside_first` on, and the workgroups from x =
// own_groups on compute  beside_dst[t] = W' · src[t]  for the rows t of src. Then slots is 1.

struct Params {
    rows: u32,
    slots: u32,
    src_div: u32,
    in_blocks: u32,
    out_quads: u32,
    part_first: u32,
    part_rows: u32,
    part_quads: u32,
    experts: u32,
    first: u32,
    own_groups: u32,
    beside_first: u32,
    beside_rows: u32,
    beside_quads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> chosen: array<u32>;
@group(0) @binding(4) var<storage, read> gates: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dst: array<vec4<f32>>;
// [rows / src_div, 4·beside_quads] f32
@group(0) @binding(7) var<storage, read_write> beside_dst: array<vec4<f32>>;

// A dense matrix is one expert that every row uses.
override ROUTED: bool = true;
override GATED: bool = false;
override BIAS: bool = false;
override EXPERT_BIAS: bool = false;
override SWIGLU: bool = false;
// Adds to dst instead of overwriting it.
override RESIDUAL: bool = false;
override BESIDE: bool = false;

//!include "shared/weights.wgsl"
//!include "shared/activation.wgsl"

// What a workgroup computes: some outputs of dst row `row`, from quad `quad` on, or of that row of beside_dst.
struct Work {
    row: u32,
    quad: u32,
    beside: bool,
}

// The work of a workgroup that computes `each` quads.
fn work_of(group: vec3<u32>, each: u32) -> Work {
    let beside = BESIDE && group.x >= params.own_groups;
    return Work(group.y, each * (group.x - select(0u, params.own_groups, beside)), beside);
}

// Whether there is nothing to compute: the dense matrix has a row for each row of src alone.
fn is_idle(work: Work) -> bool {
    return work.beside && work.row >= params.rows / params.src_div;
}

// Quads of a row of what is computed.
fn quads_of(work: Work) -> u32 {
    return select(params.part_quads, params.beside_quads, work.beside);
}

// Where the input of an assignment starts, in vec4s.
fn src_start(work: Work, assignment: u32) -> u32 {
    return select(assignment / params.src_div, work.row, work.beside) * params.in_blocks * 2u;
}

// The expert of an assignment, never outside the weights.
fn expert_of(assignment: u32) -> u32 {
    if ROUTED {
        return min(chosen[params.first + assignment], params.experts - 1u);
    }
    return 0u;
}

fn gate_of(assignment: u32) -> f32 {
    if GATED {
        return gates[params.first + assignment];
    }
    return 1.0;
}

// The vec4 where the weights of output quad `quad` of an expert's half start; quads past the part repeat its last one.
fn quad_start(work: Work, expert: u32, half: u32, quad: u32) -> u32 {
    if work.beside {
        return params.beside_first + quad_base(min(quad, (params.beside_rows - 1u) / 4u));
    }
    let halves = select(1u, 2u, SWIGLU);
    let last = (params.part_rows - 1u) / 4u;
    return quad_base((expert * halves + half) * (last + 1u) + min(quad, last));
}

fn silu(x: vec4<f32>) -> vec4<f32> {
    return x / (1.0 + exp(-x));
}

// Stores outputs 4·quad … of this part for the row at work; columns past the part are zero padding.
fn store(work: Work, quad: u32, sum: vec4<f32>) {
    let columns = 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
    if work.beside {
        let value = select(vec4<f32>(0.0), sum, columns < vec4<u32>(params.beside_rows));
        beside_dst[work.row * params.beside_quads + quad] = value;
        return;
    }
    let row = work.row;
    var value = select(vec4<f32>(0.0), sum, columns < vec4<u32>(params.part_rows));
    let column = params.part_first / 4u + quad;
    if BIAS {
        var bias_column = column;
        if EXPERT_BIAS {
            bias_column += expert_of(row * params.slots) * params.out_quads;
        }
        value += bias[bias_column];
    }
    value = activate(value);
    let to = row * params.out_quads + column;
    if RESIDUAL {
        value += dst[to];
    }
    dst[to] = value;
}
