//! What an expert MLP is.

use crate::{
    Error, Result,
    layers::{NormSpec, RouterNet, RouterSpec},
    ops::{Activation, MatrixShape},
};

/// What happens between the two projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpActivation {
    /// `silu(gate) · up`, gate stacked over up in the first projection.
    SwiGlu,
    /// One function of each channel.
    Plain(Activation),
}

/// Everything that distinguishes one expert MLP from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertMlpSpec {
    pub norm: NormSpec,
    /// Of one expert for a dense MLP.
    pub router: RouterSpec,
    pub hidden: u32,
    pub activation: MlpActivation,
}

impl ExpertMlpSpec {
    /// An MLP that every token uses.
    pub fn dense(norm: NormSpec, hidden: u32, activation: MlpActivation) -> Self {
        Self { norm, router: RouterSpec::none(), hidden, activation }
    }

    /// # Errors
    /// As [`RouterSpec::check`], and when the router asks for queries or whole sequences.
    pub fn check(&self) -> Result<()> {
        if self.router.net == RouterNet::QueryNorm || self.router.whole_sequences() {
            let found = format!("{:?} of {:?}", self.router.net, self.router.scope);
            return Err(Error::argument("router", found, "one that an MLP can ask about a token's input"));
        }
        self.router.check()
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.router.experts()
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.router.active()
    }

    pub fn up_shape(&self) -> MatrixShape {
        MatrixShape {
            experts: self.experts(),
            halves: if self.activation == MlpActivation::SwiGlu { 2 } else { 1 },
            outputs: self.hidden,
            inputs: self.norm.width,
        }
    }

    pub fn down_shape(&self) -> MatrixShape {
        MatrixShape { experts: self.experts(), halves: 1, outputs: self.norm.width, inputs: self.hidden }
    }
}
