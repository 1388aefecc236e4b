//! Routed linear for few rows: reads the expert id itself, touches each active weight once.

use super::{Activation, Bias, Kernel, Matrix, QUANTIZED_GROUP, Routes, Variant, Variants, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROUTED_MATVEC, Params::layout);
pub static WORKGROUP: Kernel = Kernel::new(&shaders::ROUTED_MATVEC_WORKGROUP, Params::layout);
pub static BROADCAST: Kernel = Kernel::new(&shaders::ROUTED_MATVEC_BROADCAST, Params::layout);
pub static PACKED: Kernel = Kernel::new(&shaders::ROUTED_MATVEC_PACKED, Params::layout);
pub static SUBGROUP: Kernel = Kernel::new(&shaders::ROUTED_MATVEC_SUBGROUP, Params::layout);

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
        own_groups: u32,
        beside_first: u32,
        beside_rows: u32,
        beside_quads: u32,
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
    /// A second product in the same dispatch; then `slots` is 1.
    pub beside: Option<Beside<'a>>,
}

/// `dst[t] = W · src[t]` for every row of `src`, beside a routed product.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// Dense, made by [`Matrix::pair`] together with the routed matrix.
    pub matrix: &'a Matrix,
    pub dst: &'a Buffer,
}

impl RoutedMatvec<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = Variants::of(recorder.gpu()).matvec_of(self.matrix.precision);
        self.record_as(recorder, shape);
    }

    /// As [`record`](Self::record), in a shape of the kernel that the chooser tries.
    pub(super) fn record_as(&self, recorder: &mut Recorder, variant: Variant) {
        let shape = self.matrix.shape;
        let out_quads = padded(shape.outputs) / 4;
        let (kernel, quads_each) = match variant {
            Variant::Plain => (&PLAIN, 8),
            Variant::Broadcast { lanes } => (&BROADCAST, lanes),
            Variant::Workgroup | Variant::F16 => (&WORKGROUP, 1),
            Variant::Packed => (&PACKED, 1),
            Variant::Subgroup => (&SUBGROUP, 1),
        };
        let constants = self.constants(variant);
        let spare = recorder.spare();
        for part in &self.matrix.parts {
            let (quads, macs) = part.quads_and_macs(&shape);
            let assignments = u64::from(self.rows) * u64::from(self.slots);
            let own_groups = quads.div_ceil(quads_each);
            let (weights, second, beside_dst) = match self.beside {
                None => (part.buffer.clone(), Second::NONE, &spare),
                Some(beside) => (part.buffer.whole(), beside.of(self.rows / self.src_div), beside.dst),
            };
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
                own_groups,
                beside_first: second.first,
                beside_rows: second.rows,
                beside_quads: second.quads,
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
                        &weights,
                        chosen,
                        gates,
                        self.bias.buffer().unwrap_or(self.src),
                        self.dst,
                        beside_dst,
                    ],
                    groups: [own_groups + second.quads.div_ceil(quads_each), self.rows, 1],
                    macs: assignments * macs + second.macs,
                    weight_bytes: assignments * self.matrix.expert_bytes(part) + second.weight_bytes,
                    cache_bytes: 0,
                },
            );
        }
    }

    fn constants(&self, variant: Variant) -> Vec<(&'static str, f64)> {
        let flag = |on: bool| f64::from(u8::from(on));
        let shape = self.matrix.shape;
        let mut constants = vec![
            ("WEIGHT_FORMAT", self.matrix.precision.format()),
            ("ROUTED", flag(self.routes.is_some())),
            ("GATED", flag(self.gated)),
            ("BIAS", flag(self.bias.buffer().is_some())),
            ("EXPERT_BIAS", flag(matches!(self.bias, Bias::OfExpert(_)))),
            ("ACTIVATION", self.activation.code()),
            ("SWIGLU", flag(shape.halves == 2)),
            ("RESIDUAL", flag(self.residual)),
            ("BESIDE", flag(self.beside.is_some())),
        ];
        if let Some(lanes) = variant.lanes() {
            let rest = !padded(shape.inputs).is_multiple_of(QUANTIZED_GROUP);
            constants.extend([lanes, ("REST", flag(rest))]);
        }
        constants
    }
}

/// The second product in numbers.
struct Second {
    /// The vec4 where its weights start.
    first: u32,
    rows: u32,
    quads: u32,
    macs: u64,
    weight_bytes: u64,
}

impl Second {
    const NONE: Self = Self { first: 0, rows: 1, quads: 0, macs: 0, weight_bytes: 0 };
}

impl Beside<'_> {
    /// For so many rows of `src`.
    fn of(&self, tokens: u32) -> Second {
        let Matrix { shape, parts, .. } = self.matrix;
        let first_byte = parts.first().map_or(0, |behind| behind.buffer.first_byte());
        Second {
            first: (first_byte / 16) as u32,
            rows: shape.outputs,
            quads: padded(shape.outputs) / 4,
            macs: u64::from(tokens) * shape.macs(),
            weight_bytes: u64::from(tokens) * self.matrix.row_bytes() * u64::from(shape.outputs),
        }
    }
}
