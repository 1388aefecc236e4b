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

use crate::{
    gpu::{Buffer, Recorder},
    layers::{
        AttentionKernel, HeadMixtureSpec, KvProjection, LayerCache, Norm, PositionEncoding, Router, Step,
        Workspace, router::dense,
    },
    ops::{
        Activation, AttentionShape, CacheAppend, Combine, DecodeAttention, Group, Matrix, PrefillAttention,
        Queries, RopeCache, RoutedMatmul, RoutedMatvec, Routes, StickBreaking, tile_rows,
    },
};

/// The tensors of a head mixture.
pub struct HeadMixtureWeights {
    /// `[experts, heads · head_dim, width]`; one dense matrix of all heads where the choice waits for the queries
    pub query: Matrix,
    /// `[2 · kv_heads · head_dim, width]` and its bias
    pub kv: Option<(Matrix, Option<Buffer>)>,
    /// `[experts, width, heads · head_dim]`
    pub output: Matrix,
    /// `[width]`
    pub output_bias: Option<Buffer>,
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
    routes: Option<Routes<'a>>,
    shape: AttentionShape,
}

impl HeadMixture {
    /// Adds the layer's output to the residual stream. `routes` is where its router writes.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        cache: &LayerCache,
        step: &Step,
        routes: Routes<'_>,
    ) {
        let call = Call {
            workspace,
            cache,
            step,
            routes: self.router.is_some().then_some(routes),
            shape: self.spec.attention_shape(cache.sequences, cache.capacity),
        };
        let after_queries = self.spec.routes_after_queries();
        match &self.router {
            Some(router) => router.record(recorder, workspace, &self.norm, step.tokens, routes),
            None => self.norm.record(recorder, workspace, step.tokens),
        }
        if !after_queries {
            self.group(recorder, &call);
        }
        self.project(recorder, &call);
        if let Some(router) = self.router.as_ref().filter(|_| after_queries) {
            router.record_after_queries(recorder, workspace, self.spec.head_dim, step.tokens, routes);
            self.group(recorder, &call);
        }
        self.append(recorder, &call);
        self.attend(recorder, &call);
        self.output(recorder, &call);
    }

    /// Sorts a long step's assignments by expert.
    fn group(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Some(routes) = call.routes.filter(|_| !call.step.few()) else { return };
        Group {
            routes,
            assignments: call.step.tokens * self.spec.active(),
            experts: self.spec.experts(),
            tile_rows: tile_rows(recorder.gpu()),
            into: &call.workspace.attention_groups,
        }
        .record(recorder);
    }

    /// Queries, keys and values.
    fn project(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, step, routes, .. } = *call;
        let active = self.spec.active();
        let (src, matrix, dst) = (&workspace.xn, &self.weights.query, &workspace.q);
        match routes.filter(|_| !self.spec.routes_after_queries()) {
            None => dense(recorder, src, matrix, None, Activation::None, dst, step.tokens),
            Some(routes) if step.few() => RoutedMatvec {
                src,
                matrix,
                routes: Some(routes),
                gated: false,
                bias: None,
                activation: Activation::None,
                dst,
                residual: false,
                rows: step.tokens * active,
                slots: 1,
                src_div: active,
            }
            .record(recorder),
            Some(_) => RoutedMatmul {
                src,
                matrix,
                groups: Some(&workspace.attention_groups),
                bias: None,
                activation: Activation::None,
                dst,
                rows: step.tokens * active,
                src_div: active,
            }
            .record(recorder),
        }
        if let Some((matrix, bias)) = &self.weights.kv {
            dense(recorder, src, matrix, bias.as_ref(), Activation::None, &workspace.kv, step.tokens);
        }
    }

    /// Positions, and this step's keys and values into the cache.
    fn append(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, cache, step, shape, .. } = *call;
        let append = |src, src_width, first, cache| CacheAppend {
            shape,
            spans: &workspace.spans,
            src,
            src_width,
            first,
            cache,
            tokens: step.tokens,
        };
        let kv_width = shape.kv_heads * shape.head_stride();
        match (self.spec.position, self.spec.kv) {
            (PositionEncoding::Rope { .. }, _) => RopeCache {
                shape,
                spans: &workspace.spans,
                angles: &cache.angles,
                q: &workspace.q,
                kv: &workspace.kv,
                k_cache: &cache.k,
                v_cache: &cache.v,
                tokens: step.tokens,
            }
            .record(recorder),
            (PositionEncoding::None, KvProjection::Projected { .. }) => {
                append(&workspace.kv, 2 * kv_width, 0, &cache.k).record(recorder);
                append(&workspace.kv, 2 * kv_width, kv_width, &cache.v).record(recorder);
            }
            (PositionEncoding::None, KvProjection::Identity) => {
                append(&workspace.xn, self.spec.norm.width, 0, &cache.k).record(recorder);
            }
        }
    }

    fn attend(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, cache, step, routes, shape } = *call;
        let (spans, q, k_cache, v_cache) = (&workspace.spans, &workspace.q, &cache.k, &cache.v);
        let (out, tokens, keys) = (&workspace.attended, step.tokens, step.keys);
        if self.spec.kernel == AttentionKernel::StickBreaking {
            StickBreaking { shape, spans, q, k_cache, v_cache, routes, out, tokens, keys }.record(recorder);
        } else if step.few() || shape.queries != Queries::BySlot {
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
                last_position: step.last_position,
                split: step.few(),
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
                keys,
            }
            .record(recorder);
        }
    }

    /// The output projection, the gated sum and the residual.
    fn output(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, step, routes, .. } = *call;
        let active = self.spec.active();
        let (src, matrix, bias) =
            (&workspace.attended, &self.weights.output, self.weights.output_bias.as_ref());
        if step.few() {
            RoutedMatvec {
                src,
                matrix,
                routes,
                gated: routes.is_some(),
                bias,
                activation: Activation::None,
                dst: &workspace.x,
                residual: true,
                rows: step.tokens,
                slots: active,
                src_div: 1,
            }
            .record(recorder);
            return;
        }
        RoutedMatmul {
            src,
            matrix,
            groups: routes.map(|_| &workspace.attention_groups),
            bias: None,
            activation: Activation::None,
            dst: &workspace.expert_rows,
            rows: step.tokens * active,
            src_div: 1,
        }
        .record(recorder);
        Combine {
            rows: &workspace.expert_rows,
            routes,
            bias,
            x: &workspace.x,
            tokens: step.tokens,
            slots: active,
            width: self.spec.norm.width,
        }
        .record(recorder);
    }
}
