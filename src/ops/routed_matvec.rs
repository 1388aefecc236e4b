//! Routed linear for few rows: reads the expert id itself, touches each active weight once.

use super::{Access, Activation, Bias, Kernel, Matrix, Routes, Shape, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

const BINDINGS: &[Access] =
    &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write];

pub static PLAIN: Kernel =
    Kernel { name: "routed_matvec", source: shaders::ROUTED_MATVEC, bindings: BINDINGS };

pub static WORKGROUP: Kernel =
    Kernel { name: "routed_matvec.workgroup", source: shaders::ROUTED_MATVEC_WORKGROUP, bindings: BINDINGS };

pub static BROADCAST: Kernel =
    Kernel { name: "routed_matvec.broadcast", source: shaders::ROUTED_MATVEC_BROADCAST, bindings: BINDINGS };

pub static SUBGROUP: Kernel =
    Kernel { name: "routed_matvec.subgroup", source: shaders::ROUTED_MATVEC_SUBGROUP, bindings: BINDINGS };

uniform! {
    struct Params {
        rows: u32,
        slots: u32,
        src_div: u32,
        in_blocks: u32,
        out_quads: u32,
        part_first: u32,
        part_rows: u32,
        part_quads: u32,
        experts: u32,
        first: u32,
    }
}

/// `dst[r] (+)= bias + Σ_s gate(a) · W[expert(a)] · src[a / src_div]` with assignment `a = r · slots + s`.
///
/// A matrix with two halves stores `silu(gate half) · (up half)` instead of the plain product.
pub struct RoutedMatvec<'a> {
    pub src: &'a Buffer,
    pub matrix: &'a Matrix,
    /// `None` for a dense matrix: one expert for every row.
    pub routes: Option<Routes<'a>>,
    /// Multiply each slot by its gate.
    pub gated: bool,
    pub bias: Bias<'a>,
    pub activation: Activation,
    pub dst: &'a Buffer,
    /// Add to `dst` instead of overwriting it.
    pub residual: bool,
    /// Rows of `dst`.
    pub rows: u32,
    /// Assignments summed into each row.
    pub slots: u32,
    /// Assignments that share one row of `src`.
    pub src_div: u32,
}

impl RoutedMatvec<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = self.matrix.shape;
        let out_quads = padded(shape.outputs) / 4;
        let shape_of = Shape::of(recorder.gpu());
        let (kernel, quads_each) = match shape_of {
            Shape::Plain => (&PLAIN, 8),
            Shape::Broadcast { lanes } => (&BROADCAST, lanes),
            Shape::Workgroup => (&WORKGROUP, 1),
            Shape::Subgroup => (&SUBGROUP, 1),
        };
        let mut constants = vec![
            ("WEIGHT_FORMAT", self.matrix.precision.format()),
            ("ROUTED", f64::from(u8::from(self.routes.is_some()))),
            ("GATED", f64::from(u8::from(self.gated))),
            ("BIAS", f64::from(u8::from(self.bias.buffer().is_some()))),
            ("EXPERT_BIAS", f64::from(u8::from(matches!(self.bias, Bias::OfExpert(_))))),
            ("ACTIVATION", self.activation.code()),
            ("SWIGLU", f64::from(u8::from(shape.halves == 2))),
            ("RESIDUAL", f64::from(u8::from(self.residual))),
        ];
        constants.extend(shape_of.lanes());
        for part in &self.matrix.parts {
            let (quads, macs) = part.quads_and_macs(&shape);
            let params = Params {
                rows: self.rows,
                slots: self.slots,
                src_div: self.src_div,
                in_blocks: padded(shape.inputs) / 8,
                out_quads,
                part_first: part.first_row,
                part_rows: part.rows,
                part_quads: quads,
                experts: shape.experts,
                first: self.routes.map_or(0, |routes| routes.first),
            };
            let (chosen, gates) =
                self.routes.map_or((self.src, self.src), |routes| (routes.chosen, routes.gates));
            recorder.dispatch(
                &params,
                Dispatch {
                    kernel,
                    constants: &constants,
                    buffers: &[
                        self.src,
                        &part.buffer,
                        chosen,
                        gates,
                        self.bias.buffer().unwrap_or(self.src),
                        self.dst,
                    ],
                    groups: [quads.div_ceil(quads_each), self.rows, 1],
                    macs: macs * u64::from(self.rows) * u64::from(self.slots),
                    weight_bytes: self.matrix.expert_bytes(part)
                        * u64::from(self.rows)
                        * u64::from(self.slots),
                    cache_bytes: 0,
                },
            );
        }
    }
}
