//! The dense linear layer, in the form that fits the number of rows.

use crate::{
    gpu::{Buffer, Recorder},
    layers::FEW_TOKENS,
    ops::{Activation, Bias, Matrix, RoutedMatmul, RoutedMatvec},
};

/// `dst = activation(W · src + bias)`
pub(super) fn dense(
    recorder: &mut Recorder,
    src: &Buffer,
    matrix: &Matrix,
    bias: Bias<'_>,
    activation: Activation,
    dst: &Buffer,
    rows: u32,
) {
    if rows <= FEW_TOKENS {
        RoutedMatvec {
            beside: None,
            src,
            matrix,
            routes: None,
            gated: false,
            bias,
            activation,
            dst,
            residual: false,
            rows,
            slots: 1,
            src_div: 1,
        }
        .record(recorder);
    } else {
        RoutedMatmul { src, matrix, groups: None, bias, activation, dst, rows, src_div: 1 }.record(recorder);
    }
}
