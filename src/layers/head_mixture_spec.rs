//! What distinguishes one head mixture from another.

use crate::{
    Error, Result,
    layers::{NormSpec, RouterNet, RouterSpec, Scope},
    ops::{
        AttentionKernel, CacheLayout, CachePrecision, ExpertChoice, HeadLayout, MAX_HEAD_DIM,
        MAX_STICK_HEAD_DIM, MatrixShape, Queries, head_stride,
    },
};

/// Where keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvProjection {
    /// One projection, keys stacked over values.
    Projected,
    /// Keys and values are the layer's input itself, cached once.
    Identity,
    /// Projections of another stack's output, made once: cross-attention.
    Memory,
    /// Keys are projected; the values of a head are its router's mixture of value experts (SwitchHead).
    MixedValues(RouterSpec),
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionEncoding {
    /// Rotary, rotate-half over the first channels of each head.
    Rope {
        /// Base of the frequencies.
        theta: f64,
        /// Channels that turn.
        channels: u32,
    },
    /// A learned vector for each distance up to `clip` either way, added to the key (SUT).
    Relative {
        /// The largest distance told apart.
        clip: u32,
    },
    /// Not at all, or with the model's input.
    None,
}

/// Query heads, the key/value heads that they share, and the channels of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub query: u32,
    /// A divisor of `query`.
    pub kv: u32,
    pub dim: u32,
}

/// Everything that distinguishes one head mixture from another. Biases are not here: a layer has those that its tensors
/// give it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadMixtureSpec {
    pub norm: NormSpec,
    /// Of one expert for ordinary attention.
    pub router: RouterSpec,
    /// Consecutive experts that share a query; they differ in the output projection alone (SwitchHead). Otherwise 1.
    pub query_share: u32,
    pub heads_per_expert: u32,
    pub kv_heads: u32,
    /// Consecutive query heads that share a key/value head.
    pub group: u32,
    pub head_dim: u32,
    pub kv: KvProjection,
    pub position: PositionEncoding,
    pub kernel: AttentionKernel,
}

impl HeadMixtureSpec {
    /// Ordinary attention: one expert that every token uses, consecutive queries in equal groups over the key/value
    /// heads, softmax. What a mixture does otherwise is the difference from it.
    pub fn dense(norm: NormSpec, heads: Heads, position: PositionEncoding) -> Self {
        let Heads { query, kv, dim } = heads;
        Self {
            norm,
            router: RouterSpec::none(),
            query_share: 1,
            heads_per_expert: query,
            kv_heads: kv,
            group: query.checked_div(kv).unwrap_or(0),
            head_dim: dim,
            kv: KvProjection::Projected,
            position,
            kernel: AttentionKernel::Softmax,
        }
    }

    /// # Errors
    /// When parameters contradict each other or exceed what the kernels hold.
    pub fn check(&self) -> Result<()> {
        self.router.check()?;
        let most = match self.kernel {
            AttentionKernel::Softmax => MAX_HEAD_DIM,
            AttentionKernel::StickBreaking => MAX_STICK_HEAD_DIM,
        };
        if !(1..=most).contains(&self.head_dim) {
            return Err(Error::argument("head size", self.head_dim, format!("1 to {most}")));
        }
        if self.query_share == 0 {
            return Err(Error::argument("experts that share a query", 0, "at least 1"));
        }
        let (heads, shares) = (self.query_heads(), self.group * self.kv_heads);
        if shares == 0 || heads == 0 || !heads.is_multiple_of(shares) {
            let expected = format!(
                "heads that divide among {} key/value heads in groups of {}",
                self.kv_heads, self.group
            );
            return Err(Error::argument("query heads", heads, expected));
        }
        if self.routes_after_queries() && self.heads_per_expert != 1 {
            let expected = "1, to route by query length";
            return Err(Error::argument("heads per expert", self.heads_per_expert, expected));
        }
        self.check_positions()?;
        self.check_shared_queries()?;
        self.check_whole_sequences()?;
        match self.kv {
            KvProjection::Projected => Ok(()),
            KvProjection::Identity => self.check_identity(),
            KvProjection::Memory => self.check_memory(),
            KvProjection::MixedValues(router) => self.check_mixed_values(&router),
        }
    }

    fn check_positions(&self) -> Result<()> {
        match self.position {
            PositionEncoding::None => Ok(()),
            PositionEncoding::Rope { channels, .. } => {
                if !self.head_dim.is_multiple_of(4) {
                    return Err(Error::argument(
                        "head size",
                        self.head_dim,
                        "a multiple of 4, to be rotated",
                    ));
                }
                if !channels.is_multiple_of(2) || !(2..=self.head_dim).contains(&channels) {
                    let expected = format!("an even number from 2 to the head size {}", self.head_dim);
                    return Err(Error::argument("rotated channels", channels, expected));
                }
                Ok(())
            }
            PositionEncoding::Relative { clip } => {
                if self.kernel != AttentionKernel::Softmax {
                    return Err(Error::argument("positions", "learned relative", "none with stick-breaking"));
                }
                if !(1..=1 << 16).contains(&clip) {
                    return Err(Error::argument("relative positions", clip, "1 to 65536 either way"));
                }
                Ok(())
            }
        }
    }

    /// What experts that share a query ask for.
    fn check_shared_queries(&self) -> Result<()> {
        if self.query_share == 1 {
            return Ok(());
        }
        let choice = self.router.choice;
        if choice.groups * self.query_share != choice.experts || choice.shared > 0 {
            let expected = format!(
                "the size of each of the router's groups ({} groups of {} experts, {} shared)",
                choice.groups, choice.experts, choice.shared
            );
            return Err(Error::argument("experts that share a query", self.query_share, expected));
        }
        if self.heads_per_expert != 1 || self.routes_after_queries() {
            let found = format!("{} heads, {:?}", self.heads_per_expert, self.router.net);
            return Err(Error::argument(
                "expert that shares its query",
                found,
                "one head, routed by the input",
            ));
        }
        if matches!(self.position, PositionEncoding::Relative { .. }) {
            let expected = "rope or none, where experts share a query";
            return Err(Error::argument("positions", "learned relative", expected));
        }
        self.check_whole_rows()
    }

    /// Heads that are rows of their own to a routed linear.
    fn check_whole_rows(&self) -> Result<()> {
        match self.head_dim.is_multiple_of(8) {
            true => Ok(()),
            false => {
                Err(Error::argument("head size", self.head_dim, "a multiple of 8, to route within heads"))
            }
        }
    }

    /// What a cut over whole sequences asks for.
    fn check_whole_sequences(&self) -> Result<()> {
        if !self.router.whole_sequences() {
            return Ok(());
        }
        let each = self.kv_heads == self.router.experts() && self.group == 1 && self.heads_per_expert == 1;
        if !each || self.query_share != 1 || self.kv != KvProjection::Projected {
            let found = format!(
                "{} experts of {} heads, {} key/value heads, {:?}",
                self.router.experts(),
                self.heads_per_expert,
                self.kv_heads,
                self.kv
            );
            return Err(Error::argument("heads", found, "a key/value head each, to cut whole sequences"));
        }
        if self.kernel != AttentionKernel::Softmax
            || matches!(self.position, PositionEncoding::Relative { .. })
        {
            return Err(Error::argument("attention", "not plain softmax", "softmax, to cut whole sequences"));
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
            let expected = "a multiple of 4, to cut the input into heads";
            return Err(Error::argument("head size", self.head_dim, expected));
        }
        if matches!(self.position, PositionEncoding::Rope { .. }) {
            return Err(Error::argument("positions", "rope", "none, since keys are values"));
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<()> {
        if self.position != PositionEncoding::None {
            let expected = "none: nothing says how far a token is from another stack's";
            return Err(Error::argument("positions", format!("{:?}", self.position), expected));
        }
        if self.kernel == AttentionKernel::StickBreaking {
            let expected = "softmax: another stack's tokens have no newest";
            return Err(Error::argument("attention", "stick-breaking", expected));
        }
        Ok(())
    }

    fn check_mixed_values(&self, router: &RouterSpec) -> Result<()> {
        router.check()?;
        let ExpertChoice { groups, shared, .. } = router.choice;
        let linear = router.net == RouterNet::Linear && router.scope == Scope::Token;
        if !linear || groups != self.kv_heads || shared > 0 {
            let found = format!("{:?} of {:?}, {groups} groups, {shared} shared", router.net, router.scope);
            let expected = format!("a linear router with a group for each of {} heads", self.kv_heads);
            return Err(Error::argument("value router", found, expected));
        }
        self.check_whole_rows()
    }

    /// Experts there are.
    pub fn experts(&self) -> u32 {
        self.router.experts()
    }

    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        self.router.active()
    }

    /// The router of the value experts.
    pub fn value_router(&self) -> Option<&RouterSpec> {
        match &self.kv {
            KvProjection::MixedValues(router) => Some(router),
            KvProjection::Projected | KvProjection::Identity | KvProjection::Memory => None,
        }
    }

    /// The routers in the order in which they write down their choices.
    pub fn routers(&self) -> impl Iterator<Item = &RouterSpec> {
        std::iter::once(&self.router).chain(self.value_router())
    }

    /// Query heads over all experts.
    pub fn query_heads(&self) -> u32 {
        self.router.experts() / self.query_share * self.heads_per_expert
    }

    /// Whether the choice needs the queries of all heads.
    pub(super) fn routes_after_queries(&self) -> bool {
        self.router.net == RouterNet::QueryNorm
    }

    /// Whether one matrix makes the queries of all heads, for every token.
    pub fn dense_queries(&self) -> bool {
        self.routes_after_queries() || self.query_share > 1 || !self.router.routes()
    }

    pub fn query_shape(&self) -> MatrixShape {
        let rows = self.heads_per_expert * head_stride(self.head_dim);
        match self.dense_queries() {
            true => MatrixShape::dense(self.query_heads() * head_stride(self.head_dim), self.norm.width),
            false => {
                MatrixShape { experts: self.experts(), halves: 1, outputs: rows, inputs: self.norm.width }
            }
        }
    }

    /// Keys over values, or keys alone.
    pub fn kv_shape(&self) -> Option<MatrixShape> {
        let heads = match self.kv {
            KvProjection::Projected | KvProjection::Memory => 2 * self.kv_heads,
            KvProjection::MixedValues(_) => self.kv_heads,
            KvProjection::Identity => return None,
        };
        Some(MatrixShape::dense(heads * head_stride(self.head_dim), self.norm.width))
    }

    /// The value experts.
    pub fn value_shape(&self) -> Option<MatrixShape> {
        self.value_router().map(|router| MatrixShape {
            experts: router.experts(),
            halves: 1,
            outputs: head_stride(self.head_dim),
            inputs: self.norm.width,
        })
    }

    pub fn output_shape(&self) -> MatrixShape {
        MatrixShape {
            experts: self.experts(),
            halves: 1,
            outputs: self.norm.width,
            inputs: self.heads_per_expert * head_stride(self.head_dim),
        }
    }

    /// How the heads of the attention lie.
    pub fn head_layout(&self) -> HeadLayout {
        // Where an expert has a head for each key/value head, or for each group of them, all experts are alike; where
        // whole sequences are cut, slots are experts.
        let alike = self.heads_per_expert.is_multiple_of(self.group * self.kv_heads);
        let (queries, slots, heads) = if self.routes_after_queries() {
            (Queries::Dense { experts: self.experts() }, self.active(), 1)
        } else if self.query_share > 1 {
            (Queries::BySlot, 1, self.query_heads())
        } else if alike || !self.router.routes() || self.router.whole_sequences() {
            (Queries::BySlot, self.active(), self.heads_per_expert)
        } else {
            (Queries::ByExpert, self.active(), self.heads_per_expert)
        };
        HeadLayout {
            queries,
            slots,
            heads,
            kv_heads: self.kv_heads,
            group: self.group,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
            scale: HeadLayout::usual_scale(self.head_dim),
            head_spans: self.router.whole_sequences(),
        }
    }

    /// Where a cache keeps the keys and values.
    pub fn cache_layout(&self, sequences: u32, capacity: u32, precision: CachePrecision) -> CacheLayout {
        CacheLayout {
            sequences,
            capacity,
            kv_heads: self.kv_heads,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
            keys_are_values: self.kv == KvProjection::Identity,
            precision,
        }
    }

    /// Floats of a token's queries.
    pub(super) fn query_floats(&self) -> u32 {
        let heads = self.head_layout();
        if self.dense_queries() { heads.q_row() } else { heads.q_row() * heads.slots }
    }
}
