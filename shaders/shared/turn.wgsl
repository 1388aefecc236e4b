// Heads turned to a position: for each pair (a, b) = (v[i], v[i + r/2]) of the first r channels and angle φ(position, i)
//     (a, b) → (a·cos φ − b·sin φ, b·cos φ + a·sin φ)
//
// angles  [.., r/2] (cos φ, sin φ) by position

//!needs var params, var angles, fn channel_at

// A channel of the head that starts at channel `head`, after the rotation.
fn turned(head: u32, channel: u32, position: u32) -> f32 {
    let half = params.half_rotated;
    let own = channel_at(head + channel);
    if channel >= 2u * half {
        return own;
    }
    let angle = angles[position * half + channel % half];
    if channel < half {
        return own * angle.x - channel_at(head + channel + half) * angle.y;
    }
    return own * angle.x + channel_at(head + channel - half) * angle.y;
}
