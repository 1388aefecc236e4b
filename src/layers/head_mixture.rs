//! The head mixture: attention whose heads are routed.
//!
//! For each token a router picks `k` experts; each brings its own query and output projection for
//! `heads_per_expert` heads; keys and values do not depend on the choice; the output is the gate-weighted sum.
//!
//! ```text
//! q(t,s) = Wq[e(t,s)] · x_t        K, V = Wk · x, Wv · x
//! y_t    = bias + Σ_s g(t,s) · Wo[e(t,s)] · attention(q(t,s), K, V)
//! ```
//!
//! Head `j` of expert `e` is head `h = e · heads_per_expert + j` and reads key/value head `(h / group) mod kv_heads`.
//! Without a router there is one expert that every token uses: ordinary attention.
//!
//! A new mixture is a new value in [`HeadMixtureSpec`], not a new layer.

mod keys_values;

use crate::{
    gpu::{Buffer, Recorder},
    layers::{
        AttentionSite, HeadMixtureSpec, Inside, KvProjection, LayerCache, Norm, Pass, Place,
        PositionEncoding, Router, Step, Sublayer, Workspace,
    },
    ops::{
        Activation, Alongside, Bias, HeadLayout, Matrix, Output, Positions, QueryRows, RelativePositions,
        RoutedLinear, Routes, RowAttention, RowList, Sums, Visible,
    },
};

/// The tensors of a head mixture.
pub struct HeadMixtureWeights<M = Matrix, B = Buffer> {
    /// `[experts, heads · head_dim, width]`; one dense matrix of all heads where every token has all queries
    pub query: M,
    /// `[experts, heads · head_dim]`, or the heads of the dense matrix
    pub query_bias: Option<B>,
    /// `[2 · kv_heads · head_dim, width]` (half as many with value experts) and its bias
    pub kv: Option<(M, Option<B>)>,
    /// The value experts, `[experts, head_dim, width]`, and their router
    pub values: Option<(M, Router<M, B>)>,
    /// `[experts, width, heads · head_dim]`
    pub output: M,
    pub output_bias: OutputBias<B>,
    /// `[heads_per_expert, 2 · clip + 1, head_dim]`
    pub relative: Option<B>,
}

/// What is added to the output.
pub enum OutputBias<B = Buffer> {
    None,
    /// `[width]`, once, after the gated sum
    Once(B),
    /// `[experts, width]`: with each expert a token uses (only where whole sequences are cut)
    OfExpert(B),
}

/// A head mixture ready to run.
pub struct HeadMixture<M = Matrix, B = Buffer> {
    pub spec: HeadMixtureSpec,
    pub norm: Norm<B>,
    pub router: Option<Router<M, B>>,
    pub weights: HeadMixtureWeights<M, B>,
}

/// What the stages of one call share.
struct Call<'a> {
    workspace: &'a Workspace,
    cache: &'a LayerCache,
    step: &'a Step,
    /// What the layer reads.
    input: &'a Buffer,
    /// The heads that tokens chose.
    rows: RowList<'a>,
    value_routes: Option<Routes<'a>>,
    heads: HeadLayout,
}

impl HeadMixture {
    /// Adds the layer's output to the residual stream. Its routers write where the pass's routes stand.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, '_>, cache: &'a LayerCache) {
        let (workspace, step) = (pass.workspace, pass.step);
        let routed = self.router.as_ref().map(|router| (router, pass.routes.next(&router.spec)));
        let call = Call {
            workspace,
            cache,
            step,
            input: self.norm.input(workspace),
            rows: self.rows(workspace, step, routed.map(|(_, routes)| routes)),
            value_routes: self.weights.values.as_ref().map(|(_, router)| pass.routes.next(&router.spec)),
            heads: self.spec.head_layout(),
        };
        match routed {
            Some((router, routes)) => router.record(pass.recorder, workspace, &self.norm, step, routes),
            None => self.norm.record_before(pass.recorder, workspace, step.tokens),
        }
        // The choice may wait for the queries.
        let waits = routed.filter(|_| self.spec.routes_after_queries());
        if routed.is_some() && waits.is_none() {
            self.sort(pass, &call);
        }
        self.project(pass.recorder, &call);
        self.reach(pass, Place::Queries, &call);
        if let Some((router, routes)) = waits {
            router.record_after_queries(pass.recorder, workspace, self.spec.head_dim, step.tokens, routes);
            self.sort(pass, &call);
        }
        self.attend(pass.recorder, &call);
        self.reach(pass, Place::Attended, &call);
        self.output(pass.recorder, &call);
        self.norm.record_after(pass.recorder, workspace, step.tokens);
        self.reach(pass, Place::Output, &call);
    }

    /// Groups the rows that the router chose.
    fn sort<'a>(&'a self, pass: &mut Pass<'a, '_>, call: &Call<'a>) {
        self.reach(pass, Place::Routes, call);
        call.rows.sort(pass.recorder);
    }

    fn reach<'a>(&'a self, pass: &mut Pass<'a, '_>, place: Place, call: &Call<'a>) {
        let sublayer = match self.spec.kv {
            KvProjection::Memory => Sublayer::Cross,
            _ => Sublayer::Attention,
        };
        let (spans, _) = self.visible(call);
        let Call { heads, cache, .. } = *call;
        let (kernel, positions) = (self.spec.kernel, self.positions(cache));
        let routes = call.rows.routes().filter(|_| self.spec.query_share == 1);
        let (cache, new) = (&cache.kv, self.new_keys(call));
        let attention = AttentionSite { heads, kernel, positions, spans, cache, new, routes };
        let choice = self.router.as_ref().map(|router| router.spec.choice);
        pass.reach(sublayer, place, call.rows, choice, Inside::Attention(attention));
    }

    /// A row for each head expert that a token chose.
    fn rows<'a>(&self, workspace: &'a Workspace, step: &Step, routes: Option<Routes<'a>>) -> RowList<'a> {
        let Some(routes) = routes else { return RowList::dense(step.tokens) };
        let (active, experts) = (self.spec.active(), self.spec.experts());
        let rows = RowList::routed(step.tokens, active, experts, routes, &workspace.attention_groups);
        if self.spec.router.whole_sequences() { rows.with_gaps() } else { rows }
    }

    /// Queries, keys and values.
    fn project(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, step, .. } = *call;
        let bias = self.weights.query_bias.as_ref();
        let (rows, src_div, bias) = match self.spec.dense_queries() {
            true => (RowList::dense(step.tokens), 1, Bias::of_all(bias)),
            false => (call.rows, self.spec.active(), bias.map_or(Bias::None, Bias::OfExpert)),
        };
        let kv = self.weights.kv.as_ref().filter(|_| self.spec.kv != KvProjection::Memory);
        RoutedLinear {
            rows,
            src: call.input,
            src_div,
            normed: self.norm.norms_input(),
            matrix: &self.weights.query,
            bias,
            activation: Activation::None,
            output: Output::Each(&workspace.q),
            alongside: kv.map(|(matrix, bias)| {
                let (bias, dst) = (bias.as_ref(), &workspace.kv);
                Alongside { matrix, bias, dst }
            }),
        }
        .record(recorder);
        self.mix_values(recorder, call);
    }

    /// This step's keys and values into the cache, and every head over the keys that it sees.
    fn attend(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, cache, step, heads, .. } = *call;
        let (spans, visible) = self.visible(call);
        RowAttention {
            heads,
            kernel: self.spec.kernel,
            rows: QueryRows {
                q: &workspace.q,
                spans,
                ranges: &workspace.ranges,
                routes: call.rows.routes(),
                tokens: step.tokens,
                sequences: step.ranges,
                longest: step.longest,
                visible,
            },
            new: self.new_keys(call),
            positions: self.positions(cache),
            cache: &cache.kv,
            scratch: &workspace.split_scratch,
            out: &workspace.attended,
        }
        .record(recorder);
    }

    /// What rows see: their spans, and how much these are together.
    fn visible<'a>(&self, call: &Call<'a>) -> (&'a Buffer, Visible) {
        let Call { workspace, step, heads, .. } = *call;
        match self.spec.kv {
            KvProjection::Memory => (&workspace.memory_spans, step.memory),
            _ if heads.head_spans => (&workspace.head_spans, step.own),
            _ => (&workspace.spans, step.own),
        }
    }

    fn positions<'a>(&'a self, cache: &'a LayerCache) -> Positions<'a> {
        match (self.spec.position, &self.weights.relative) {
            (PositionEncoding::Rope { channels, .. }, _) => {
                Positions::Rope { angles: &cache.angles, rotated: channels }
            }
            (PositionEncoding::Relative { clip }, Some(table)) => {
                Positions::Relative(RelativePositions { table, clip })
            }
            (PositionEncoding::Relative { .. } | PositionEncoding::None, _) => Positions::None,
        }
    }

    /// The output projection, the gated sum and the residual.
    fn output(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let workspace = call.workspace;
        let (once, of_expert) = match &self.weights.output_bias {
            OutputBias::None => (None, Bias::None),
            OutputBias::Once(bias) => (Some(bias), Bias::None),
            OutputBias::OfExpert(bias) => (None, Bias::OfExpert(bias)),
        };
        RoutedLinear {
            rows: call.rows,
            src: &workspace.attended,
            // Experts that share a query read the same attention output.
            src_div: if self.spec.query_share > 1 { self.spec.router.choice.top_k } else { 1 },
            normed: false,
            matrix: &self.weights.output,
            bias: of_expert,
            activation: Activation::None,
            output: Output::Sums(Sums {
                dst: &workspace.x,
                of: self.spec.active(),
                bias: once,
                residual: true,
                products: &workspace.expert_rows,
            }),
            alongside: None,
        }
        .record(recorder);
    }
}
