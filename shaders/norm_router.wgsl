// norm_router: xn = norm(x[t]); scores z_r = router_r · xn + bias_r; then the choice of shared/select.wgsl
//
// x       [tokens, width] f32        norm_weights [1 or 2, width] f32: weight, then bias
// router  [rows, width] f32, a row for each scored expert, then with TWO_STAGE two for the stages    bias [rows] f32
// xn      [tokens, width] f32, untouched with NORM = NO_NORM
// chosen  [.., tokens, k] u32, from index `first`, k slots a token; gates likewise f32
// kept_scores [.., tokens, routed experts] f32, from index `first_score`
// grid    y: tokens, one workgroup a token
//
// Scores are f32 sums in a fixed order. The lanes split into teams of `team` lanes, one row a team at a time.

struct Params {
    quads: u32,
    width: u32,
    experts: u32,
    rows: u32,
    top_k: u32,
    team: u32,
    first: u32,
    first_score: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm_weights: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> router: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> xn: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(7) var<storage, read_write> gates: array<f32>;
@group(0) @binding(8) var<storage, read_write> kept_scores: array<f32>;

const NO_NORM: u32 = 0u;
const RMS_NORM: u32 = 1u;
const LAYER_NORM: u32 = 2u;
override NORM: u32 = RMS_NORM;
override BIAS: bool = false;

//!include "shared/reduce.wgsl"
//!include "shared/select.wgsl"

// What the norm takes off and multiplies with.
var<private> mean: f32;
var<private> scale: f32;

fn normed(token: u32, i: u32) -> vec4<f32> {
    let value = x[token * params.quads + i];
    switch NORM {
        case NO_NORM: { return value; }
        case LAYER_NORM: { return (value - mean) * scale * norm_weights[i] + norm_weights[params.quads + i]; }
        default: { return value * scale * norm_weights[i]; }
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let token = group.y;
    let start = token * params.quads;

    if NORM == LAYER_NORM {
        var total = 0.0;
        for (var i = lane; i < params.quads; i += LANES) {
            total += dot(x[start + i], vec4<f32>(1.0));
        }
        mean = workgroup_sum(lane, total) / f32(params.width);
    }
    if NORM != NO_NORM {
        var squares = 0.0;
        for (var i = lane; i < params.quads; i += LANES) {
            // The padding is not part of the row: without the mean it is zero no more.
            let columns = 4u * i + vec4<u32>(0u, 1u, 2u, 3u);
            let value = select(vec4<f32>(0.0), x[start + i] - mean, columns < vec4<u32>(params.width));
            squares += dot(value, value);
        }
        scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.width) + params.eps);
        for (var i = lane; i < params.quads; i += LANES) {
            xn[start + i] = normed(token, i);
        }
    }

    // Each lane normalises again what it needs instead of waiting for the others' xn.
    let teams = LANES / params.team;
    let member = lane % params.team;
    for (var first = 0u; first < params.rows; first += teams) {
        let row = first + lane / params.team;
        var score = 0.0;
        if row < params.rows {
            for (var i = member; i < params.quads; i += params.team) {
                score += dot(normed(token, i), router[row * params.quads + i]);
            }
        }
        partial_sums[lane] = score;
        workgroupBarrier();
        if member == 0u && row < params.rows {
            var sum = 0.0;
            for (var i = 0u; i < params.team; i++) {
                sum += partial_sums[lane + i];
            }
            if BIAS {
                sum += bias[row];
            }
            scores[UNSCORED + row] = sum;
        }
        workgroupBarrier();
    }

    choose(lane, token);
}
