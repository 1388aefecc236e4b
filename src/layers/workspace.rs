//! The activations of one session, each a named buffer.

use crate::{
    Error, Result,
    gpu::{Buffer, Gpu},
    layers::{ExpertMlpSpec, HeadMixtureSpec, RouterSpec, Step},
    ops::{
        GroupBuffers, HeadLayout, MAX_TOP_LOGITS, Queries, Routes, Sections, Span, Visible, head_stride,
        least_tile_rows, most_tiles, padded, scratch_splits, split_tokens, workgroups,
    },
};

/// The largest sizes a session needs. Start with [`Dimensions::new`], then add every layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dimensions {
    /// Tokens in one step, over all sequences.
    pub tokens: u32,
    pub sequences: u32,
    /// Keys that a token sees at the most.
    pub keys: u32,
    /// How the caches are cut that tokens see.
    pub sections: Sections,
    /// Rows of logits in one step.
    pub logit_rows: u32,
    pub width: u32,
    pub vocab: u32,
    /// Values of an image patch.
    pub patch: u32,
    /// Floats a token takes in `q`, `kv`, `values` and `attended`.
    query_floats: u32,
    kv_floats: u32,
    value_floats: u32,
    attended_floats: u32,
    /// Query rows of a token, in tiles, that read one key/value head.
    tile_rows: u32,
    /// Floats of all splits of a token's query rows.
    split_heads: u32,
    /// Floats of a head's output.
    split_stride: u32,
    attention_rows: Sorted,
    value_rows: Sorted,
    /// Floats a token takes in `expert_rows`.
    expert_floats: u32,
    mlp_rows: Sorted,
    mlp_hidden: u32,
    /// Width of the hidden layer of a router, and scores it may have.
    router_hidden: u32,
    router_scores: u32,
    /// Heads that cut whole sequences, and heads a token keeps.
    cut_heads: u32,
    cut_active: u32,
    /// Experts chosen per token over all routers of the model, and scores they are chosen by.
    routes_per_token: u32,
    scores_per_token: u32,
}

/// Rows that are sorted by expert: the most of them for a token, and the most experts.
#[derive(Clone, Copy, Debug, Default)]
struct Sorted {
    active: u32,
    experts: u32,
}

impl Sorted {
    fn grow(&mut self, router: &RouterSpec) {
        self.active = self.active.max(router.active());
        self.experts = self.experts.max(router.experts());
    }
}

/// Workgroups of a dispatch in one dimension at the most.
const MOST_WORKGROUPS: u64 = 65_535;

/// The buffers a step works in. Shapes are the largest; a step uses the front of each.
pub struct Workspace {
    /// Channels of the residual stream.
    pub width: u32,
    /// `[tokens]` u32: input ids of a prompt
    pub ids: Buffer,
    /// `[tokens, patch]` f32: an image's patches
    pub patches: Buffer,
    /// `[tokens]` [`Span`](crate::ops::Span)s in the tokens' own sequences
    pub spans: Buffer,
    /// `[tokens]` spans in the memory that the tokens attend to
    pub memory_spans: Buffer,
    /// `[tokens, heads]` spans, where whole sequences are cut
    pub head_spans: Buffer,
    /// `[tokens, k]`: the heads each token kept before the cut, and what they weighed
    pub kept: Buffer,
    pub kept_gates: Buffer,
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
    /// `[tokens, kv_heads · head_dim]`: values from value experts
    pub values: Buffer,
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
    /// `[scores_per_token · tokens]` f32: the scores of the routed experts, router after router
    pub route_scores: Buffer,
    pub attention_groups: GroupBuffers,
    pub value_groups: GroupBuffers,
    pub mlp_groups: GroupBuffers,
    /// Scratch of split attention.
    pub split_scratch: Buffer,
    /// `[logit_rows, width]`: the normed rows the output head reads
    pub last: Buffer,
    /// `[logit_rows, vocab]`
    pub logits: Buffer,
    /// `[logit_rows]` u32: the sampled tokens, which the next step reads
    pub tokens: Buffer,
    /// `[logit_rows, n]`: the likeliest tokens and their log-probabilities
    pub top_ids: Buffer,
    pub top_values: Buffer,
    /// `[logit_rows]` u32: a given token for each row, and how likely it is
    pub targets: Buffer,
    pub target_logprobs: Buffer,
    /// `[sequences]` u32: the sequences that others go on from
    pub parents: Buffer,
}

/// The names of [`Workspace`]'s buffers, groups aside, with their bytes.
type Sizes = Vec<(&'static str, u64)>;

impl Dimensions {
    /// For steps of at most `tokens` tokens of at most `sequences` sequences, each of which sees at most `keys` keys, of caches that
    /// are not cut into sections.
    pub fn new(tokens: u32, sequences: u32, keys: u32, logit_rows: u32) -> Self {
        Self { tokens, sequences, keys, logit_rows, ..Self::default() }
    }

    /// Makes room for an attention.
    pub fn attention(&mut self, spec: &HeadMixtureSpec) {
        let grow = |size: &mut u32, need: u32| *size = need.max(*size);
        let heads = spec.head_layout();
        let stride = head_stride(spec.head_dim);
        grow(&mut self.width, spec.norm.width);
        grow(&mut self.query_floats, spec.query_floats());
        grow(&mut self.kv_floats, spec.kv_shape().map_or(0, |shape| shape.outputs));
        grow(&mut self.attended_floats, heads.out_row() * heads.slots);
        if heads.queries == Queries::BySlot {
            grow(&mut self.tile_rows, heads.rows_of_kv_head());
        }
        grow(&mut self.split_heads, heads.slots * heads.heads);
        grow(&mut self.split_stride, heads.value_stride());
        grow(&mut self.expert_floats, spec.active() * padded(spec.norm.width));
        if let Some(router) = spec.value_router() {
            grow(&mut self.value_floats, spec.kv_heads * stride);
            grow(&mut self.expert_floats, router.active() * padded(stride));
        }
        self.attention_rows.grow(&spec.router);
        if let Some(router) = spec.value_router() {
            self.value_rows.grow(router);
        }
        spec.routers().for_each(|router| self.router(router));
        if spec.router.whole_sequences() {
            grow(&mut self.cut_heads, spec.experts());
            grow(&mut self.cut_active, spec.router.choice.slots());
        }
    }

    /// Makes room for an MLP.
    pub fn mlp(&mut self, spec: &ExpertMlpSpec) {
        self.width = self.width.max(spec.norm.width);
        self.mlp_rows.grow(&spec.router);
        self.mlp_hidden = self.mlp_hidden.max(spec.hidden);
        self.expert_floats = self.expert_floats.max(spec.active() * padded(spec.norm.width));
        self.router(&spec.router);
    }

    fn router(&mut self, router: &RouterSpec) {
        self.router_hidden = self.router_hidden.max(router.hidden());
        self.router_scores = self.router_scores.max(router.choice.score_rows());
        self.reserve(router.routes_per_token(), router.scores_per_token());
    }

    /// Makes room for more choices of a token and the scores they are made by.
    pub fn reserve(&mut self, routes: u32, scores: u32) {
        self.routes_per_token += routes;
        self.scores_per_token += scores;
    }

    /// What is sorted by expert in one step: assignments and experts of each kind of row.
    fn sorted(&self) -> [(u32, u32); 3] {
        [self.attention_rows, self.value_rows, self.mlp_rows]
            .map(|rows| (self.tokens * rows.active, rows.experts))
    }

    /// Every buffer's name and size, in the order of [`Workspace`]'s fields.
    fn buffers(&self) -> Sizes {
        let mlp = self.tokens * self.mlp_rows.active;
        let floats = |rows: u32, width: u32| 4 * u64::from(rows) * u64::from(padded(width));
        let few = split_tokens(self.tokens, self.sequences);
        let splits = scratch_splits([few, self.tokens], self.keys, self.sections);
        let split_floats = HeadLayout::split_floats(splits * u64::from(self.split_heads), self.split_stride);
        let words = |n: u32| 4 * u64::from(n);
        let span_words = u64::from(Span::WORDS) * words(self.tokens);
        let top = u64::from(MAX_TOP_LOGITS) * words(self.logit_rows);
        let routes = words(self.tokens) * u64::from(self.routes_per_token);
        vec![
            ("ids", words(self.tokens)),
            ("patches", floats(self.tokens, self.patch)),
            ("spans", span_words),
            ("memory_spans", span_words),
            ("head_spans", span_words * u64::from(self.cut_heads)),
            ("kept", words(self.tokens) * u64::from(self.cut_active)),
            ("kept_gates", words(self.tokens) * u64::from(self.cut_active)),
            ("ranges", 2 * words(self.sequences)),
            ("logit_rows", words(self.logit_rows)),
            ("x", floats(self.tokens, self.width)),
            ("xn", floats(self.tokens, self.width)),
            ("q", floats(self.tokens, self.query_floats)),
            ("kv", floats(self.tokens, self.kv_floats)),
            ("values", floats(self.tokens, self.value_floats)),
            ("attended", floats(self.tokens, self.attended_floats)),
            ("hidden", floats(mlp, self.mlp_hidden)),
            ("expert_rows", floats(self.tokens, self.expert_floats)),
            ("router_hidden", floats(self.tokens, self.router_hidden)),
            ("scores", floats(self.tokens, self.router_scores)),
            ("routes.chosen", routes),
            ("routes.gates", routes),
            ("routes.scores", words(self.tokens) * u64::from(self.scores_per_token)),
            ("split_scratch", 4 * split_floats),
            ("last", floats(self.logit_rows, self.width)),
            ("logits", floats(self.logit_rows, self.vocab)),
            ("tokens", words(self.logit_rows)),
            ("top_ids", top),
            ("top_values", top),
            ("targets", words(self.logit_rows)),
            ("target_logprobs", words(self.logit_rows)),
            ("parents", words(self.sequences)),
        ]
    }

    /// Bytes of the whole workspace.
    pub fn bytes(&self, gpu: &Gpu) -> u64 {
        let groups = self
            .sorted()
            .iter()
            .flat_map(|&(assignments, experts)| {
                GroupBuffers::bytes(assignments, experts, least_tile_rows(gpu))
            })
            .sum::<u64>();
        self.buffers().iter().map(|(_, bytes)| bytes).sum::<u64>() + groups
    }

    /// # Errors
    /// [`Error::TooLarge`] when a buffer exceeds what the device can bind, [`Error::Argument`] for too many tokens.
    pub fn check(&self, gpu: &Gpu) -> Result<()> {
        let groups = self
            .sorted()
            .map(|(assignments, experts)| workgroups(assignments, experts, least_tile_rows(gpu)));
        let tiles = most_tiles(gpu, u64::from(self.tokens.min(self.keys)) * u64::from(self.tile_rows));
        let most = groups.into_iter().fold(tiles.max(u64::from(self.tokens)), u64::max);
        if most > MOST_WORKGROUPS {
            let found = format!("{} tokens, for which {most} workgroups run side by side", self.tokens);
            let expected = format!("at most {MOST_WORKGROUPS} workgroups");
            return Err(Error::argument("tokens of a step", found, expected));
        }
        let mut buffers = self.buffers().into_iter();
        buffers.try_for_each(|(name, bytes)| gpu.fits(&format!("the buffer '{name}' of a session"), bytes))
    }
}

impl Workspace {
    /// Allocates for `dimensions`, which must have passed [`Dimensions::check`].
    pub fn new(gpu: &Gpu, dimensions: &Dimensions) -> Self {
        let mut sizes = dimensions.buffers().into_iter();
        let mut next = || {
            let (name, bytes) = sizes.next().unwrap_or_default();
            Buffer::new(gpu, name, bytes)
        };
        let [attention_groups, value_groups, mlp_groups] = dimensions
            .sorted()
            .map(|(assignments, experts)| GroupBuffers::new(gpu, assignments, experts, least_tile_rows(gpu)));
        // Fields are evaluated in the order in which they stand here, which is that of `buffers`.
        Self {
            width: dimensions.width,
            ids: next(),
            patches: next(),
            spans: next(),
            memory_spans: next(),
            head_spans: next(),
            kept: next(),
            kept_gates: next(),
            ranges: next(),
            logit_rows: next(),
            x: next(),
            xn: next(),
            q: next(),
            kv: next(),
            values: next(),
            attended: next(),
            hidden: next(),
            expert_rows: next(),
            router_hidden: next(),
            scores: next(),
            chosen: next(),
            gates: next(),
            route_scores: next(),
            attention_groups,
            value_groups,
            mlp_groups,
            split_scratch: next(),
            last: next(),
            logits: next(),
            tokens: next(),
            top_ids: next(),
            top_values: next(),
            targets: next(),
            target_logprobs: next(),
            parents: next(),
        }
    }

    /// Starts a step: writes down where its rows stand, and that each of `ranges` of (first token, tokens) is a sequence.
    pub fn begin(&self, spans: &[Span], ranges: &[[u32; 2]]) -> Step {
        self.spans.write(0, &Span::words(spans));
        self.ranges.write(0, ranges);
        Step {
            tokens: spans.len() as u32,
            ranges: ranges.len() as u32,
            longest: ranges.iter().map(|[_, count]| *count).max().unwrap_or(0),
            own: Visible::of(spans),
            memory: Visible::default(),
            logit_rows: 0,
            hidden: false,
        }
    }

    /// Where the routers of a step of `tokens` tokens write, one after the other.
    pub fn routes(&self, tokens: u32) -> RouteCursor<'_> {
        RouteCursor { workspace: self, tokens, routes: 0, scores: 0 }
    }
}

/// Where the next router of a step writes.
pub struct RouteCursor<'a> {
    workspace: &'a Workspace,
    tokens: u32,
    /// Choices of a token that stand before.
    routes: u32,
    scores: u32,
}

impl<'a> RouteCursor<'a> {
    /// The place of one router.
    pub fn next(&mut self, router: &RouterSpec) -> Routes<'a> {
        let workspace = self.workspace;
        let routes = Routes {
            chosen: &workspace.chosen,
            gates: &workspace.gates,
            first: self.tokens * self.routes,
            scores: &workspace.route_scores,
            first_score: self.tokens * self.scores,
        };
        self.skip(router.routes_per_token(), router.scores_per_token());
        routes
    }

    /// Leaves room for other choices.
    pub fn skip(&mut self, routes: u32, scores: u32) {
        self.routes += routes;
        self.scores += scores;
    }
}
