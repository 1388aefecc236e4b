//! Puts the splits of an attention together.

use super::{AttentionShape, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ATTENTION_MERGE, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        head_quads: u32,
        out_quads: u32,
        splits: u32,
    }
}

/// Puts the splits of a decoding kernel together: `[partial, stats, out]`.
pub(super) fn merge(
    recorder: &mut Recorder,
    shape: &AttentionShape,
    tokens: u32,
    splits: u32,
    buffers: [&Buffer; 3],
) {
    let heads = shape.slots * shape.heads;
    let params = Params {
        tokens,
        slots: shape.slots,
        heads: shape.heads,
        head_quads: shape.head_stride() / 4,
        out_quads: shape.out_row() / 4,
        splits,
    };
    recorder.dispatch(
        &params,
        Dispatch::new(&KERNEL, &buffers, [(heads * shape.head_stride() / 4).div_ceil(64), tokens, 1]),
    );
}
