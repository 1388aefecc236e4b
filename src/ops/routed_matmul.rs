//! Routed linear for many rows: assignments grouped by expert, computed in tiles.

use super::{
    Access, Activation, Bias, GroupBuffers, Kernel, Matrix, Shape, Shapes, group::max_tiles, padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

const BINDINGS: &[Access] =
    &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write];

pub static PLAIN: Kernel = variant("routed_matmul", shaders::ROUTED_MATMUL);
pub static BROADCAST: Kernel = variant("routed_matmul.broadcast", shaders::ROUTED_MATMUL_BROADCAST);
pub static WORKGROUP: Kernel = variant("routed_matmul.workgroup", shaders::ROUTED_MATMUL_WORKGROUP);
pub static F16: Kernel = variant("routed_matmul.f16", shaders::ROUTED_MATMUL_F16);
pub static PACKED: Kernel = variant("routed_matmul.packed", shaders::ROUTED_MATMUL_PACKED);

const fn variant(name: &'static str, source: &'static str) -> Kernel {
    Kernel { name, source, bindings: BINDINGS }
}

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
    let Shapes { matmul, tall, .. } = Shapes::of(gpu);
    match matmul {
        Shape::Plain => 8,
        Shape::Broadcast { .. } if tall && rows > 8 * experts => 16,
        Shape::Broadcast { .. } => 8,
        Shape::Workgroup | Shape::Subgroup | Shape::F16 | Shape::Packed => 32,
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
        let shape = Shapes::of(recorder.gpu()).matmul_of(self.matrix.precision, self.bounded);
        self.record_as(recorder, shape, tile_rows);
    }

    /// As [`record`](Self::record), in a shape and with tiles that the chooser tries.
    pub(super) fn record_as(&self, recorder: &mut Recorder, shape_of: Shape, tile_rows: u32) {
        let shape = self.matrix.shape;
        // Output quads that a workgroup covers, half of them gates with SwiGLU.
        let (kernel, quads_each) = match shape_of {
            Shape::Plain => (&PLAIN, 16),
            Shape::Broadcast { lanes } => (&BROADCAST, 2 * lanes),
            Shape::Workgroup | Shape::Subgroup => (&WORKGROUP, 16),
            Shape::F16 => (&F16, 16),
            Shape::Packed => (&PACKED, 16),
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
        if let Shape::Broadcast { .. } = shape_of {
            constants.extend(shape_of.lanes());
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
            let groups = match shape_of {
                Shape::Broadcast { .. } => [tiles, columns, 1],
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
