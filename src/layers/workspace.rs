//! The activations of one session, each a named buffer.

use crate::{
    Error, Result,
    gpu::{Buffer, Gpu},
    layers::FEW_TOKENS,
    ops::{AttentionShape, GroupBuffers, Routes, head_stride, padded, tile_rows},
};

/// The largest sizes a session needs, over all layers of its model.
#[derive(Clone, Copy, Debug)]
pub struct Dimensions {
    /// Tokens in one step, over all sequences.
    pub tokens: u32,
    pub sequences: u32,
    /// Positions of a sequence.
    pub capacity: u32,
    /// Rows of logits in one step.
    pub logit_rows: u32,
    pub width: u32,
    pub vocab: u32,
    /// Floats a token takes in `q`, `kv` and `attended`.
    pub query_floats: u32,
    pub kv_floats: u32,
    pub attended_floats: u32,
    /// Query heads of a token over all its slots, and channels of one.
    pub query_heads: u32,
    pub head_dim: u32,
    pub attention_active: u32,
    pub attention_experts: u32,
    pub mlp_active: u32,
    pub mlp_experts: u32,
    pub mlp_hidden: u32,
    /// Width of the hidden layer of a router.
    pub router_hidden: u32,
    /// Experts chosen per token over all routers of the model.
    pub routes_per_token: u32,
}

/// The buffers a step works in. Shapes are the largest; a step uses the front of each.
pub struct Workspace {
    /// `[tokens]` u32: input ids of a prompt
    pub ids: Buffer,
    /// `[tokens]` of (position, sequence)
    pub spans: Buffer,
    /// `[sequences]` of (first token, tokens)
    pub ranges: Buffer,
    /// `[logit_rows]` u32: the token each row of logits belongs to
    pub logit_rows: Buffer,
    /// `[tokens, width]`: the residual stream
    pub x: Buffer,
    /// `[tokens, width]`: the normed input of a layer
    pub xn: Buffer,
    /// `[tokens · k, heads · head_dim]`: query rows
    pub q: Buffer,
    /// `[tokens, 2 · kv_heads · head_dim]`: keys and values of this step
    pub kv: Buffer,
    /// `[tokens · k, heads · head_dim]`: attention output, before the output projection
    pub attended: Buffer,
    /// `[tokens · k, hidden]`: inside the MLP experts
    pub hidden: Buffer,
    /// `[tokens · k, width]`: expert outputs before they are combined
    pub expert_rows: Buffer,
    /// `[tokens, hidden]`: inside a router of two layers
    pub router_hidden: Buffer,
    /// `[tokens, experts]`: router scores that did not stay in one kernel
    pub scores: Buffer,
    /// `[routes_per_token · tokens]` u32: the chosen experts, router after router
    pub chosen: Buffer,
    /// The same for the gates, f32.
    pub gates: Buffer,
    pub attention_groups: GroupBuffers,
    pub mlp_groups: GroupBuffers,
    /// Scratch of split attention.
    pub partial: Buffer,
    pub stats: Buffer,
    /// `[logit_rows, width]`: the normed rows the output head reads
    pub last: Buffer,
    /// `[logit_rows, vocab]`
    pub logits: Buffer,
    /// `[logit_rows]` u32: the sampled tokens, which the next step reads
    pub tokens: Buffer,
}

impl Dimensions {
    /// Assignments of the attention and of the MLP routers in one step.
    fn assignments(&self) -> (u32, u32) {
        (self.tokens * self.attention_active, self.tokens * self.mlp_active)
    }

    /// Every buffer's name and size, in the order of [`Workspace`]'s fields, groups aside.
    fn buffers(&self) -> [(&'static str, u64); 19] {
        let (attention, mlp) = self.assignments();
        let floats = |rows: u32, width: u32| 4 * u64::from(rows) * u64::from(padded(width));
        // One split needs no scratch.
        let splits = AttentionShape::splits(self.capacity - 1);
        let query_heads = FEW_TOKENS.min(self.tokens) * self.query_heads;
        let split_rows = if splits > 1 { u64::from(query_heads) * u64::from(splits) } else { 0 };
        let words = |n: u32| 4 * u64::from(n);
        [
            ("ids", words(self.tokens)),
            ("spans", 2 * words(self.tokens)),
            ("ranges", 2 * words(self.sequences)),
            ("logit_rows", words(self.logit_rows)),
            ("x", floats(self.tokens, self.width)),
            ("xn", floats(self.tokens, self.width)),
            ("q", floats(self.tokens, self.query_floats)),
            ("kv", floats(self.tokens, self.kv_floats)),
            ("attended", floats(self.tokens, self.attended_floats)),
            ("hidden", floats(mlp, self.mlp_hidden)),
            ("expert_rows", floats(attention.max(mlp), self.width)),
            ("router_hidden", floats(self.tokens, self.router_hidden)),
            ("scores", floats(self.tokens, self.attention_experts.max(self.mlp_experts))),
            ("routes", words(self.tokens) * u64::from(self.routes_per_token)),
            ("partial", 4 * split_rows * u64::from(head_stride(self.head_dim))),
            ("stats", 8 * split_rows),
            ("last", floats(self.logit_rows, self.width)),
            ("logits", floats(self.logit_rows, self.vocab)),
            ("tokens", words(self.logit_rows)),
        ]
    }

    /// Bytes of the whole workspace.
    pub fn bytes(&self, gpu: &Gpu) -> u64 {
        let (attention, mlp) = self.assignments();
        let groups = [(attention, self.attention_experts), (mlp, self.mlp_experts)]
            .iter()
            .flat_map(|&(assignments, experts)| GroupBuffers::bytes(assignments, experts, tile_rows(gpu)))
            .sum::<u64>();
        let routes_twice =
            self.buffers().iter().filter(|(name, _)| *name == "routes").map(|(_, n)| n).sum::<u64>();
        self.buffers().iter().map(|(_, bytes)| bytes).sum::<u64>() + groups + routes_twice
    }

    /// # Errors
    /// [`Error::TooLarge`] when a buffer exceeds what the device can bind.
    pub fn check(&self, gpu: &Gpu) -> Result<()> {
        let capabilities = gpu.capabilities();
        let have = capabilities.max_binding.min(capabilities.max_buffer);
        match self.buffers().into_iter().find(|(_, bytes)| *bytes > have) {
            Some((name, need)) => Err(Error::TooLarge {
                what: format!("the buffer '{name}' of a session"),
                need,
                have,
                limit: "one storage binding of the adapter".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl Workspace {
    /// Allocates for `dimensions`, which must have passed [`Dimensions::check`].
    pub fn new(gpu: &Gpu, dimensions: &Dimensions) -> Self {
        let [
            ids,
            spans,
            ranges,
            logit_rows,
            x,
            xn,
            q,
            kv,
            attended,
            hidden,
            expert_rows,
            router_hidden,
            scores,
            routes,
            partial,
            stats,
            last,
            logits,
            tokens,
        ] = dimensions.buffers();
        let (attention, mlp) = dimensions.assignments();
        let buffer = |(name, bytes): (&str, u64)| Buffer::new(gpu, name, bytes);
        let groups = |assignments, experts| GroupBuffers::new(gpu, assignments, experts, tile_rows(gpu));
        Self {
            ids: buffer(ids),
            spans: buffer(spans),
            ranges: buffer(ranges),
            logit_rows: buffer(logit_rows),
            x: buffer(x),
            xn: buffer(xn),
            q: buffer(q),
            kv: buffer(kv),
            attended: buffer(attended),
            hidden: buffer(hidden),
            expert_rows: buffer(expert_rows),
            router_hidden: buffer(router_hidden),
            scores: buffer(scores),
            chosen: buffer(("routes.chosen", routes.1)),
            gates: buffer(("routes.gates", routes.1)),
            attention_groups: groups(attention, dimensions.attention_experts),
            mlp_groups: groups(mlp, dimensions.mlp_experts),
            partial: buffer(partial),
            stats: buffer(stats),
            last: buffer(last),
            logits: buffer(logits),
            tokens: buffer(tokens),
        }
    }

    /// Where a router writes in a step of `tokens` tokens, `routes_before` being the experts per token of the
    /// routers before it.
    pub fn routes(&self, tokens: u32, routes_before: u32) -> Routes<'_> {
        Routes { chosen: &self.chosen, gates: &self.gates, first: tokens * routes_before }
    }
}
