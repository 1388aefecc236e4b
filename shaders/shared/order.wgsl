// An integer that orders as the float does; zeros of either sign are equal, and a NaN has its place, too.
fn order_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}
