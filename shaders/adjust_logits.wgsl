// adjust_logits: logits as penalties and biases leave them
//
//     x              = logit · repetition if logit < 0, logit / repetition else, if token v was read or written; or logit
//     adjusted[r][v] = x − presence · [n > 0] − frequency · n + bias[v],  n: how often v was written
//
// What would be infinite is the largest number there is. LOWEST, as a logit or a bias, bans a token: its adjusted logit is LOWEST.
// A logit that is not finite stays as it is.
//
// logits [rows, stride] f32         spans [..] Span     rows [rows] u32: the span of each row
// counts [sequences, stride] u32: n, and FROM_PROMPT where v was read
// bias   [stride] f32               adjusted [rows, stride] f32
// grid   x: 64 quads of a row, y: rows

struct Params {
    vocab: u32,
    stride: u32,
    sequences: u32,
    repetition: f32,
    // 1 / repetition
    relief: f32,
    presence: f32,
    frequency: f32,
}

//!include "shared/span.wgsl"

const LOWEST: f32 = -3.4028234e38;
// The next number above it: what is not banned is above what is.
const ALLOWED: f32 = -3.4028232e38;
const FROM_PROMPT: u32 = 0x80000000u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read> counts: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> adjusted: array<vec4<f32>>;

//!include "shared/finite.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quad = group.x * 64u + lane;
    let quads = params.stride / 4u;
    if quad >= quads {
        return;
    }
    let sequence = min(spans[rows[group.y]].sequence, params.sequences - 1u);
    let logit = logits[group.y * quads + quad];
    let count = counts[sequence * quads + quad];
    let written = count & vec4<u32>(~FROM_PROMPT);
    let seen = count != vec4<u32>(0u);
    let repeated = logit * select(vec4<f32>(params.relief), vec4<f32>(params.repetition), logit < vec4<f32>(0.0));
    var x = within(select(logit, repeated, seen));
    x -= params.presence * select(vec4<f32>(0.0), vec4<f32>(1.0), written > vec4<u32>(0u));
    x -= params.frequency * vec4<f32>(written);
    x = within(x + bias[quad]);
    let banned = (logit <= vec4<f32>(LOWEST)) | (bias[quad] <= vec4<f32>(LOWEST));
    x = select(x, vec4<f32>(LOWEST), banned);
    let finite = vec4<bool>(is_finite(logit.x), is_finite(logit.y), is_finite(logit.z), is_finite(logit.w));
    let inside = 4u * quad + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
    adjusted[group.y * quads + quad] = select(vec4<f32>(0.0), select(logit, x, finite), inside);
}

fn within(x: vec4<f32>) -> vec4<f32> {
    return clamp(x, vec4<f32>(ALLOWED), vec4<f32>(-LOWEST));
}
