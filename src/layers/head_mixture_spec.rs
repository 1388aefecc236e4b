//! What distinguishes one head mixture from another.

use crate::{
    Error, Result,
    layers::{NormSpec, RouterNet, RouterSpec},
    ops::{AttentionShape, MAX_HEAD_DIM, MAX_STICK_HEAD_DIM, MatrixShape, Queries, head_stride},
};

/// Where keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvProjection {
    /// One projection for all experts, keys stacked over values.
    Projected {
        /// Whether it adds a bias.
        bias: bool,
    },
    /// Keys and values are the normed input itself, cached once.
    Identity,
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionEncoding {
    /// Rotary, rotate-half over all channels.
    Rope {
        /// Base of the frequencies.
        theta: f64,
    },
    /// Not at all.
    None,
}

/// How scores become attention weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Causal softmax of `q·k / √d`.
    Softmax,
    /// Causal stick-breaking of `q·k / √d`.
    StickBreaking,
}

/// Everything that distinguishes one head mixture from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadMixtureSpec {
    pub norm: NormSpec,
    /// `None` for ordinary attention.
    pub router: Option<RouterSpec>,
    pub heads_per_expert: u32,
    pub kv_heads: u32,
    /// Consecutive query heads that share a key/value head.
    pub group: u32,
    pub head_dim: u32,
    pub kv: KvProjection,
    pub position: PositionEncoding,
    pub kernel: AttentionKernel,
    /// A bias added once after the gated sum.
    pub output_bias: bool,
}

impl HeadMixtureSpec {
    /// # Errors
    /// When parameters contradict each other or exceed what the kernels hold.
    pub fn check(&self) -> Result<()> {
        if let Some(router) = &self.router {
            router.check(&self.norm)?;
        }
        let most = match self.kernel {
            AttentionKernel::Softmax => MAX_HEAD_DIM,
            AttentionKernel::StickBreaking => MAX_STICK_HEAD_DIM,
        };
        if !(1..=most).contains(&self.head_dim) {
            return Err(Error::argument("head size", self.head_dim, format!("1 to {most}")));
        }
        if matches!(self.position, PositionEncoding::Rope { .. }) && !self.head_dim.is_multiple_of(4) {
            return Err(Error::argument("head size", self.head_dim, "a multiple of 4, to be rotated"));
        }
        let heads = self.experts() * self.heads_per_expert;
        let shares = self.group * self.kv_heads;
        if shares == 0 || heads == 0 || !heads.is_multiple_of(shares) {
            let expected = format!(
                "heads that divide among {} key/value heads in groups of {}",
                self.kv_heads, self.group
            );
            return Err(Error::argument("query heads", heads, expected));
        }
        if self.kv == KvProjection::Identity {
            self.check_identity()?;
        }
        if self.routes_after_queries() && self.heads_per_expert != 1 {
            return Err(Error::argument(
                "heads per expert",
                self.heads_per_expert,
                "1, to route by query length",
            ));
        }
        Ok(())
    }

    /// What keys and values that are the input itself, in one cache, ask for.
    fn check_identity(&self) -> Result<()> {
        let width = self.kv_heads * self.head_dim;
        if width != self.norm.width {
            let expected =
                format!("the width {}, since keys and values are the input itself", self.norm.width);
            return Err(Error::argument("key/value width", width, expected));
        }
        if self.kv_heads > 1 && !self.head_dim.is_multiple_of(4) {
            return Err(Error::argument(
                "head size",
                self.head_dim,
                "a multiple of 4, to cut the input into heads",
            ));
        }
        if self.position != PositionEncoding::None {
            return Err(Error::argument("positions", "rope", "none, since keys are values"));
        }
        Ok(())
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.router.map_or(1, |router| router.experts())
    }

    /// Choices of a token that its router writes down.
    pub fn routes_per_token(&self) -> u32 {
        self.router.map_or(0, |router| router.active())
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.router.map_or(1, |router| router.active())
    }

    /// Whether the choice needs the queries of all heads.
    pub(super) fn routes_after_queries(&self) -> bool {
        self.router.is_some_and(|router| router.net == RouterNet::QueryNorm)
    }

    pub fn query_shape(&self) -> MatrixShape {
        let heads = MatrixShape {
            experts: self.experts(),
            halves: 1,
            outputs: self.heads_per_expert * head_stride(self.head_dim),
            inputs: self.norm.width,
        };
        match self.routes_after_queries() {
            true => MatrixShape::dense(heads.experts * heads.outputs, heads.inputs),
            false => heads,
        }
    }

    pub fn kv_shape(&self) -> Option<MatrixShape> {
        let outputs = 2 * self.kv_heads * head_stride(self.head_dim);
        (self.kv != KvProjection::Identity).then(|| MatrixShape::dense(outputs, self.norm.width))
    }

    pub fn output_shape(&self) -> MatrixShape {
        MatrixShape {
            experts: self.experts(),
            halves: 1,
            outputs: self.norm.width,
            inputs: self.heads_per_expert * head_stride(self.head_dim),
        }
    }

    /// Sizes of the attention itself.
    pub fn attention_shape(&self, sequences: u32, capacity: u32) -> AttentionShape {
        // Where an expert has a head for each key/value head, or for each group of them, all experts are alike.
        let queries = if self.routes_after_queries() {
            Queries::Dense { experts: self.experts() }
        } else if self.router.is_none() || self.heads_per_expert.is_multiple_of(self.group * self.kv_heads) {
            Queries::BySlot
        } else {
            Queries::ByExpert
        };
        AttentionShape {
            queries,
            slots: self.active(),
            heads: self.heads_per_expert,
            kv_heads: self.kv_heads,
            group: self.group,
            head_dim: self.head_dim,
            capacity,
            sequences,
        }
    }

    /// Bytes of the key/value cache.
    pub fn cache_bytes(&self, sequences: u32, capacity: u32) -> u64 {
        let copies = if self.kv == KvProjection::Identity { 1 } else { 2 };
        copies * self.attention_shape(sequences, capacity).cache_bytes()
    }
}
