//! Puts the splits of an attention together.

use super::{HeadLayout, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ATTENTION_MERGE, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        value_quads: u32,
        out_quads: u32,
        splits: u32,
    }
}

/// Puts the splits of a decoding kernel together: `[scratch, out]`.
pub(super) fn merge(
    recorder: &mut Recorder,
    heads: &HeadLayout,
    tokens: u32,
    splits: u32,
    buffers: [&Buffer; 2],
) {
    record(recorder, heads, [tokens, splits], buffers, false);
}

/// The same of stick-breaking: the splits are of one stick, from the last to the first.
pub(super) fn merge_sticks(
    recorder: &mut Recorder,
    heads: &HeadLayout,
    tokens: u32,
    splits: u32,
    buffers: [&Buffer; 2],
) {
    record(recorder, heads, [tokens, splits], buffers, true);
}

fn record(
    recorder: &mut Recorder,
    heads: &HeadLayout,
    [tokens, splits]: [u32; 2],
    buffers: [&Buffer; 2],
    sticks: bool,
) {
    let value_quads = heads.value_stride() / 4;
    let params = Params {
        tokens,
        slots: heads.slots,
        heads: heads.heads,
        value_quads,
        out_quads: heads.out_row() / 4,
        splits,
    };
    let groups = [(heads.used_heads() * value_quads).div_ceil(64), tokens, 1];
    let constants = &[("STICKS", f64::from(u8::from(sticks)))];
    recorder.dispatch(&params, Dispatch { constants, ..Dispatch::new(&KERNEL, &buffers, groups) });
}
