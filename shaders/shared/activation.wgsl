// What happens to an output after its bias. A NaN stays one, as `max` and `min` would not let it.

const NO_ACTIVATION: u32 = 0u;
// x / 2 · (1 + erf(x / √2))
const GELU: u32 = 1u;
// x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
const GELU_TANH: u32 = 2u;
const TANH: u32 = 3u;
const RELU: u32 = 4u;
override ACTIVATION: u32 = NO_ACTIVATION;

fn activate(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        case GELU: { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
        case GELU_TANH: { return 0.5 * x * (1.0 + tanh_of(0.79788456 * (x + 0.044715 * x * x * x))); }
        case TANH: { return tanh_of(x); }
        case RELU: { return select(x, vec4<f32>(0.0), x < vec4<f32>(0.0)); }
        default: { return x; }
    }
}

// tanh by exp: WGSL's own may overflow where exp(2x) does.
fn tanh_of(x: vec4<f32>) -> vec4<f32> {
    return 1.0 - 2.0 / (exp(2.0 * select(x, vec4<f32>(20.0), x > vec4<f32>(20.0))) + 1.0);
}

// Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
fn erf(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - series * exp(-x * x));
}
