//! Routed linear for many rows: assignments grouped by expert, computed in tiles.

use super::{
    Activation, Bias, GroupBuffers, Kernel, Matrix, Variant, Variants, group::max_tiles, padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROUTED_MATMUL, Params::layout);
pub static BROADCAST: Kernel = Kernel::new(&shaders::ROUTED_MATMUL_BROADCAST, Params::layout);
pub static WORKGROUP: Kernel = Kernel::new(&shaders::ROUTED_MATMUL_WORKGROUP, Params::layout);
pub static F16: Kernel = Kernel::new(&shaders::ROUTED_MATMUL_F16, Params::layout);
pub static PACKED: Kernel = Kernel::new(&shaders::ROUTED_MATMUL_PACKED, Params::layout);

uniform! {
    struct Params {
        rows: u32,
        src_div: u32,
        in_blocks: u32,
        out_quads: u32,
        part_first: u32,
        part_rows: u32,
        part_quads: u32,
        experts: u32,
        tile_rows: u32,
    }
}

/// Rows of a tile in this device's variant, for `rows` assignments spread over `experts`; grouping must cut tiles of
/// this height. Lower tiles waste less where an expert has few rows.
pub fn tile_rows(gpu: &Gpu, rows: u32, experts: u32) -> u32 {
    let Variants { matmul, tall, .. } = Variants::of(gpu);
    match matmul {
        Variant::Plain => 8,
        Variant::Broadcast { .. } if tall && rows > 8 * experts => 16,
        Variant::Broadcast { .. } => 8,
        Variant::Workgroup | Variant::Subgroup | Variant::F16 | Variant::Packed => 32,
    }
}

/// Rows of the lowest tiles that steps of any size are cut into.
pub fn least_tile_rows(gpu: &Gpu) -> u32 {
    tile_rows(gpu, 0, 1)
}

/// `dst[a] = W[expert(a)] · src[a / src_div] + bias` for every assignment `a`.
///
/// A matrix with two halves stores `silu(gate half) · (up half)` instead of the plain product.
pub struct RoutedMatmul<'a> {
    pub src: &'a Buffer,
    pub matrix: &'a Matrix,
    /// `None` for a dense matrix.
    pub groups: Option<&'a GroupBuffers>,
    pub bias: Bias<'a>,
    pub activation: Activation,
    pub dst: &'a Buffer,
    /// Assignments, or rows of a dense matrix.
    pub rows: u32,
    /// Assignments that share one row of `src`.
    pub src_div: u32,
    /// Whether no value of `src`, nor a sum of eight products, can pass what 16-bit floats hold.
    pub bounded: bool,
}

impl RoutedMatmul<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let tile_rows = tile_rows(recorder.gpu(), self.rows, self.matrix.shape.experts);
        let shape = Variants::of(recorder.gpu()).matmul_of(self.matrix.precision, self.bounded);
        self.record_as(recorder, shape, tile_rows);
    }

    /// As [`record`](Self::record), in a shape and with tiles that the chooser tries.
    pub(super) fn record_as(&self, recorder: &mut Recorder, variant: Variant, tile_rows: u32) {
        let shape = self.matrix.shape;
        // Output quads that a workgroup covers, half of them gates with SwiGLU.
        let (kernel, quads_each) = match variant {
            Variant::Plain => (&PLAIN, 16),
            Variant::Broadcast { lanes } => (&BROADCAST, 2 * lanes),
            Variant::Workgroup | Variant::Subgroup => (&WORKGROUP, 16),
            Variant::F16 => (&F16, 16),
            Variant::Packed => (&PACKED, 16),
        };
        let swiglu = shape.halves == 2;
        let group_quads = quads_each / shape.halves;
        let tiles = match self.groups {
            Some(_) => max_tiles(self.rows, shape.experts, tile_rows),
            None => self.rows.div_ceil(tile_rows),
        };
        let mut constants = vec![
            ("WEIGHT_FORMAT", self.matrix.precision.format()),
            ("ROUTED", f64::from(u8::from(self.groups.is_some()))),
            ("BIAS", f64::from(u8::from(self.bias.buffer().is_some()))),
            ("EXPERT_BIAS", f64::from(u8::from(matches!(self.bias, Bias::OfExpert(_))))),
            ("ACTIVATION", self.activation.code()),
            ("SWIGLU", f64::from(u8::from(swiglu))),
        ];
        if let Variant::Broadcast { .. } = variant {
            constants.extend(variant.lanes());
            constants.push(("TALL", f64::from(u8::from(tile_rows > 8))));
        }
        for part in &self.matrix.parts {
            let (quads, macs) = part.quads_and_macs(&shape);
            let params = Params {
                rows: self.rows,
                src_div: self.src_div,
                in_blocks: padded(shape.inputs) / 8,
                out_quads: padded(shape.outputs) / 4,
                part_first: part.first_row,
                part_rows: part.rows,
                part_quads: quads,
                experts: shape.experts,
                tile_rows,
            };
            let columns = quads.div_ceil(group_quads);
            let groups = match variant {
                Variant::Broadcast { .. } => [tiles, columns, 1],
                _ => [columns, tiles, 1],
            };
            let (table, order) =
                self.groups.map_or((self.src, self.src), |groups| (&groups.tiles, &groups.order));
            recorder.dispatch(
                &params,
                Dispatch {
                    kernel,
                    constants: &constants,
                    buffers: &[
                        self.src,
                        &part.buffer,
                        table,
                        order,
                        self.bias.buffer().unwrap_or(self.src),
                        self.dst,
                    ],
                    groups,
                    macs: macs * u64::from(self.rows),
                    weight_bytes: self.matrix.expert_bytes(part) * u64::from(self.rows.min(shape.experts)),
                    cache_bytes: 0,
                },
            );
        }
    }
}
