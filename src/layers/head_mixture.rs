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
        AttentionKernel, HeadMixtureSpec, KvProjection, LayerCache, Norm, PositionEncoding, RouteCursor,
        Router, Step, Visible, Workspace, linear::dense,
    },
    ops::{
        Activation, AttentionShape, Beside, Bias, Combine, DecodeAttention, Group, Matrix, PrefillAttention,
        Queries, RelativePositions, RopeAttentionDecode, RoutedMatmul, RoutedMatvec, Routes, StickBreaking,
        tile_rows,
    },
};

/// The tensors of a head mixture.
pub struct HeadMixtureWeights {
    /// `[experts, heads · head_dim, width]`; one dense matrix of all heads where every token has all queries
    pub query: Matrix,
    /// `[experts, heads · head_dim]`, or the heads of the dense matrix
    pub query_bias: Option<Buffer>,
    /// `[2 · kv_heads · head_dim, width]` (half as many with value experts) and its bias
    pub kv: Option<(Matrix, Option<Buffer>)>,
    /// The value experts, `[experts, head_dim, width]`, and their router
    pub values: Option<(Matrix, Router)>,
    /// `[experts, width, heads · head_dim]`
    pub output: Matrix,
    pub output_bias: OutputBias,
    /// `[heads_per_expert, 2 · clip + 1, head_dim]`
    pub relative: Option<Buffer>,
}

/// What is added to the output.
pub enum OutputBias {
    None,
    /// `[width]`, once, after the gated sum
    Once(Buffer),
    /// `[experts, width]`: with each expert a token uses (only where whole sequences are cut)
    OfExpert(Buffer),
}

/// A head mixture ready to run.
pub struct HeadMixture {
    pub spec: HeadMixtureSpec,
    pub norm: Norm,
    pub router: Option<Router>,
    pub weights: HeadMixtureWeights,
}

/// What the stages of one call share.
struct Call<'a> {
    workspace: &'a Workspace,
    cache: &'a LayerCache,
    step: &'a Step,
    /// What the layer reads.
    input: &'a Buffer,
    routes: Option<Routes<'a>>,
    value_routes: Option<Routes<'a>>,
    shape: AttentionShape,
    /// Whether each row runs on its own, instead of in tiles by expert.
    few: bool,
}

impl HeadMixture {
    /// Adds the layer's output to the residual stream. Its routers write where `routes` stands.
    pub fn record<'a>(
        &'a self,
        recorder: &mut Recorder,
        workspace: &'a Workspace,
        cache: &'a LayerCache,
        step: &'a Step,
        routes: &mut RouteCursor<'a>,
    ) {
        let call = Call {
            workspace,
            cache,
            step,
            input: self.norm.input(workspace),
            routes: self.router.as_ref().map(|router| routes.next(&router.spec)),
            value_routes: self.weights.values.as_ref().map(|(_, router)| routes.next(&router.spec)),
            shape: cache.size.shape(&self.spec),
            few: step.few() && !self.spec.router.whole_sequences(),
        };
        match (&self.router, call.routes) {
            (Some(router), Some(routes)) => router.record(recorder, workspace, &self.norm, step, routes),
            _ => self.norm.record_before(recorder, workspace, step.tokens),
        }
        let routed_queries = !self.spec.dense_queries();
        if routed_queries {
            self.group(recorder, &call);
        }
        self.project(recorder, &call);
        if let (true, Some(router), Some(routes)) =
            (self.spec.routes_after_queries(), &self.router, call.routes)
        {
            router.record_after_queries(recorder, workspace, self.spec.head_dim, step.tokens, routes);
        }
        self.append(recorder, &call);
        self.attend(recorder, &call);
        // Value experts were grouped in the same place.
        if !routed_queries || call.value_routes.is_some() {
            self.group(recorder, &call);
        }
        self.output(recorder, &call);
        self.norm.record_after(recorder, workspace, step.tokens);
    }

    /// Sorts a long step's assignments by expert.
    fn group(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Some(routes) = call.routes.filter(|_| !call.few) else { return };
        let (assignments, experts) = (call.step.tokens * self.spec.active(), self.spec.experts());
        Group {
            routes,
            assignments,
            experts,
            tile_rows: tile_rows(recorder.gpu(), assignments, experts),
            into: &call.workspace.attention_groups,
        }
        .record(recorder);
    }

    /// Queries, keys and values.
    fn project(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, step, input: src, .. } = *call;
        let active = self.spec.active();
        let (matrix, bias, dst) = (&self.weights.query, self.weights.query_bias.as_ref(), &workspace.q);
        let rows = step.tokens * active;
        let of_expert = bias.map_or(Bias::None, Bias::OfExpert);
        match call.routes.filter(|_| !self.spec.dense_queries()) {
            None => dense(recorder, src, matrix, Bias::of_all(bias), Activation::None, dst, step.tokens),
            Some(routes) if call.few => RoutedMatvec {
                beside: self.beside(call),
                src,
                matrix,
                routes: Some(routes),
                gated: false,
                bias: of_expert,
                activation: Activation::None,
                dst,
                residual: false,
                rows,
                slots: 1,
                src_div: active,
            }
            .record(recorder),
            Some(_) => RoutedMatmul {
                src,
                matrix,
                groups: Some(&workspace.attention_groups),
                bias: of_expert,
                activation: Activation::None,
                dst,
                rows,
                src_div: active,
            }
            .record(recorder),
        }
        if self.spec.kv == KvProjection::Memory {
            return;
        }
        if let (Some((matrix, bias)), None) = (&self.weights.kv, self.beside(call)) {
            let bias = Bias::of_all(bias.as_ref());
            dense(recorder, src, matrix, bias, Activation::None, &workspace.kv, step.tokens);
        }
        self.mix_values(recorder, call);
    }

    /// The key/value projection, where the kernel of a few routed queries can do it by the way.
    fn beside<'a>(&'a self, call: &Call<'a>) -> Option<Beside<'a>> {
        let (matrix, bias) = self.weights.kv.as_ref()?;
        let routed = call.few && call.routes.is_some() && !self.spec.dense_queries();
        let here = self.spec.kv != KvProjection::Memory && bias.is_none();
        let paired = self.weights.query.is_paired_with(matrix);
        (routed && here && paired).then_some(Beside { matrix, dst: &call.workspace.kv })
    }

    fn attend(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, cache, step, routes, shape, .. } = *call;
        let memory = self.spec.kv == KvProjection::Memory;
        let Visible { most, total: keys } = if memory { step.memory } else { step.own };
        let spans = if memory { &workspace.memory_spans } else { call.spans() };
        let (q, k_cache, v_cache) = (&workspace.q, &cache.k, &cache.v);
        let (out, tokens) = (&workspace.attended, step.tokens);
        let relative = match (&self.weights.relative, self.spec.position) {
            (Some(table), PositionEncoding::Relative { clip }) => Some(RelativePositions { table, clip }),
            _ => None,
        };
        if let (PositionEncoding::Rope { channels: rotated, .. }, true) =
            (self.spec.position, self.appends_itself(call))
        {
            RopeAttentionDecode {
                shape,
                spans,
                q,
                kv: &workspace.kv,
                angles: &cache.angles,
                rotated,
                k_cache,
                v_cache,
                partial: &workspace.partial,
                stats: &workspace.stats,
                out,
                tokens,
                most_keys: most,
                keys,
            }
            .record(recorder);
        } else if self.spec.kernel == AttentionKernel::StickBreaking {
            StickBreaking { shape, spans, q, k_cache, v_cache, routes, out, tokens, keys }.record(recorder);
        } else if call.few || shape.queries != Queries::BySlot || shape.head_spans || relative.is_some() {
            DecodeAttention {
                shape,
                spans,
                q,
                k_cache,
                v_cache,
                partial: &workspace.partial,
                stats: &workspace.stats,
                routes,
                out,
                tokens,
                most_keys: most,
                relative,
                split: call.few,
                keys,
            }
            .record(recorder);
        } else {
            PrefillAttention {
                shape,
                spans,
                ranges: &workspace.ranges,
                q,
                k_cache,
                v_cache,
                out,
                tokens,
                longest: step.longest,
                ranges_len: step.ranges,
                most_keys: most,
                keys,
            }
            .record(recorder);
        }
    }

    /// The output projection, the gated sum and the residual.
    fn output(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, step, routes, .. } = *call;
        let active = self.spec.active();
        // Experts that share a query read the same attention output.
        let src_div = if self.spec.query_share > 1 { self.spec.router.choice.top_k } else { 1 };
        let (src, matrix) = (&workspace.attended, &self.weights.output);
        let (once, of_expert) = match &self.weights.output_bias {
            OutputBias::None => (None, Bias::None),
            OutputBias::Once(bias) => (Some(bias), Bias::None),
            OutputBias::OfExpert(bias) => (None, Bias::OfExpert(bias)),
        };
        if call.few {
            debug_assert!(matches!(of_expert, Bias::None), "an output bias of each expert needs a cut");
            RoutedMatvec {
                beside: None,
                src,
                matrix,
                routes,
                gated: routes.is_some(),
                bias: Bias::of_all(once),
                activation: Activation::None,
                dst: &workspace.x,
                residual: true,
                rows: step.tokens,
                slots: active,
                src_div,
            }
            .record(recorder);
            return;
        }
        RoutedMatmul {
            src,
            matrix,
            groups: routes.map(|_| &workspace.attention_groups),
            bias: of_expert,
            activation: Activation::None,
            dst: &workspace.expert_rows,
            rows: step.tokens * active,
            src_div,
        }
        .record(recorder);
        Combine {
            rows: &workspace.expert_rows,
            routes,
            bias: once,
            x: &workspace.x,
            residual: true,
            tokens: step.tokens,
            slots: active,
            width: self.spec.norm.width,
        }
        .record(recorder);
    }
}

impl<'a> Call<'a> {
    /// Where the step's rows stand in their own sequences.
    fn spans(&self) -> &'a Buffer {
        if self.shape.head_spans { &self.workspace.head_spans } else { &self.workspace.spans }
    }
}
