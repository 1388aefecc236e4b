//! How a model's layers ask for their tensors. One walk over the layers names each tensor once; walked with a plan it says
//! what the model wants, walked with an [`Upload`](super::Upload) it makes the layers.

use super::{Form, Pieces, Request};
use crate::Result;

/// Hands out what a walk over a model's layers asks for.
pub(crate) trait Tensors {
    /// What stands for a [`Matrix`](crate::ops::Matrix).
    type Matrix;
    /// What stands for rows of f32.
    type Rows;

    /// # Errors
    /// When the tensors named do not make the whole thing, or there is no room.
    fn matrix(&mut self, request: Request) -> Result<Self::Matrix>;

    /// Two matrices of as many inputs that lie in one buffer where [`Matrix::pair`](crate::ops::Matrix::pair) can do it.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn pair(&mut self, requests: [Request; 2]) -> Result<[Self::Matrix; 2]>;

    /// Rows of any other form than a matrix.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn rows(&mut self, request: Request) -> Result<Self::Rows>;

    /// A table of sinusoidal positions, counted from `first`: computed, so of no tensor.
    fn sinusoids(&mut self, positions: u32, width: u32, first: u32) -> Self::Rows;

    /// Rows that a model may have or not: those of which a tensor is named.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn optional(&mut self, pieces: &Pieces, form: Form) -> Result<Option<Self::Rows>> {
        if pieces.is_empty() { Ok(None) } else { self.rows(Request::new(pieces, form)).map(Some) }
    }
}

/// A plan: what a walk asks for, in the walk's order.
impl Tensors for Vec<Request> {
    type Matrix = ();
    type Rows = ();

    fn matrix(&mut self, request: Request) -> Result<()> {
        let request = request.whole()?;
        // Layers may share what they want.
        if !self.contains(&request) {
            self.push(request);
        }
        Ok(())
    }

    fn pair(&mut self, [first, second]: [Request; 2]) -> Result<[(); 2]> {
        Ok([self.matrix(first)?, self.matrix(second)?])
    }

    fn rows(&mut self, request: Request) -> Result<()> {
        self.matrix(request)
    }

    fn sinusoids(&mut self, _: u32, _: u32, _: u32) {}
}
