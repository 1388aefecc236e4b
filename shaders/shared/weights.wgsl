// Weights in storage, read eight at a time along a row. Needs `weights: array<vec4<u32>>` in scope.

const F32: u32 = 0u;
const F16: u32 = 1u;
override WEIGHT_FORMAT: u32 = F32;

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

// Weights 8·block … 8·block + 7.
fn weight8(block: u32) -> Eight {
    if WEIGHT_FORMAT == F16 {
        let bits = weights[block];
        return Eight(
            vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y)),
            vec4<f32>(unpack2x16float(bits.z), unpack2x16float(bits.w)),
        );
    }
    return Eight(bitcast<vec4<f32>>(weights[2u * block]), bitcast<vec4<f32>>(weights[2u * block + 1u]));
}
