// What stands for a token where a row's logits are not all finite: there is no likeliest.
const NOT_FINITE: u32 = 0xffffffffu;

// By its bits: compilers may take it that no float is a NaN or infinite.
fn is_finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}
