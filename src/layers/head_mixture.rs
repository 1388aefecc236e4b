//! The head mixture: attention whose heads are routed.
//!
//! For each token: a router picks `k` experts; each brings its own query and output projection for
//! `heads_per_expert` heads; all share one set of keys and values; the output is the gate-weighted sum.
//!
//! ```text
//! q(t,s) = Wq[e(t,s)] · x_t        K, V = Wk · x, Wv · x
//! y_t    = bias + Σ_s g(t,s) · Wo[e(t,s)] · attention(q(t,s), K, V)
//! ```
//!
//! A new mixture is a new value in [`HeadMixtureSpec`], not a new layer.

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{LayerCache, NormSpec, RouterSpec, Step, Workspace},
    ops::{
        AttentionShape, Combine, DecodeAttention, Group, MAX_HEAD_DIM, Matrix, MatrixShape, NormRouter,
        PrefillAttention, RopeCache, RoutedMatmul, RoutedMatvec, Routes, tile_rows,
    },
};

/// Where keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvProjection {
    /// One projection shared by all experts, keys stacked over values.
    Shared,
}

/// Which key/value head the query head `j` of expert slot `s` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvMap {
    /// Head `j` of every expert reads key/value head `j` (keys and values are tiled, not interleaved).
    Tiled,
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionEncoding {
    /// Rotary, rotate-half over all channels.
    Rope {
        /// Base of the frequencies.
        theta: f64,
    },
}

/// How scores become attention weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Causal softmax of `q·k / √d`.
    Softmax,
}

/// Everything that distinguishes one head mixture from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadMixtureSpec {
    pub norm: NormSpec,
    pub router: RouterSpec,
    pub heads_per_expert: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub kv: KvProjection,
    pub kv_map: KvMap,
    pub position: PositionEncoding,
    pub kernel: AttentionKernel,
    /// A bias added once after the gated sum.
    pub output_bias: bool,
}

/// The tensors of a head mixture.
pub struct HeadMixtureWeights {
    /// `[width]`
    pub norm: Buffer,
    /// `[experts, width]` f32
    pub router: Buffer,
    /// `[experts, heads · head_dim, width]`
    pub query: Matrix,
    /// `[2 · kv_heads · head_dim, width]`
    pub kv: Matrix,
    /// `[experts, width, heads · head_dim]`
    pub output: Matrix,
    /// `[width]`
    pub output_bias: Option<Buffer>,
}

impl HeadMixtureSpec {
    /// # Errors
    /// When parameters contradict each other or exceed what the kernels hold.
    pub fn check(&self) -> Result<()> {
        self.router.check()?;
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(4) || self.head_dim > MAX_HEAD_DIM {
            let expected = format!("a multiple of 4 up to {MAX_HEAD_DIM}");
            return Err(Error::argument("head size", self.head_dim, expected));
        }
        let KvMap::Tiled = self.kv_map;
        if self.kv_heads == 0 || self.heads_per_expert != self.kv_heads {
            return Err(Error::argument(
                "heads per expert",
                self.heads_per_expert,
                format!("{} (one for each key/value head)", self.kv_heads),
            ));
        }
        Ok(())
    }

    pub fn query_shape(&self) -> MatrixShape {
        MatrixShape {
            experts: self.router.experts,
            halves: 1,
            outputs: self.heads_per_expert * self.head_dim,
            inputs: self.norm.width,
        }
    }

    pub fn kv_shape(&self) -> MatrixShape {
        let KvProjection::Shared = self.kv;
        MatrixShape::dense(2 * self.kv_heads * self.head_dim, self.norm.width)
    }

    pub fn output_shape(&self) -> MatrixShape {
        let query = self.query_shape();
        MatrixShape { outputs: query.inputs, inputs: query.outputs, ..query }
    }

    /// Sizes of the attention itself.
    pub fn attention_shape(&self, sequences: u32, capacity: u32) -> AttentionShape {
        let KvMap::Tiled = self.kv_map;
        AttentionShape {
            slots: self.router.active(),
            heads: self.heads_per_expert,
            kv_heads: self.kv_heads,
            group: 1,
            head_dim: self.head_dim,
            capacity,
            sequences,
        }
    }
}

/// A head mixture ready to run.
pub struct HeadMixture {
    pub spec: HeadMixtureSpec,
    pub weights: HeadMixtureWeights,
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
        let AttentionKernel::Softmax = self.spec.kernel;
        NormRouter {
            x: &workspace.x,
            norm_weight: &self.weights.norm,
            router: &self.weights.router,
            xn: &workspace.xn,
            routes,
            tokens: step.tokens,
            width: self.spec.norm.width,
            experts: self.spec.router.experts,
            active: self.spec.router.active(),
            eps: self.spec.norm.eps,
        }
        .record(recorder);
        if step.few() {
            self.project_few(recorder, workspace, step, routes);
        } else {
            self.project_many(recorder, workspace, step, routes);
        }
        let shape = self.spec.attention_shape(cache.sequences, cache.capacity);
        RopeCache {
            shape,
            spans: &workspace.spans,
            angles: &cache.angles,
            q: &workspace.q,
            kv: &workspace.kv,
            k_cache: &cache.k,
            v_cache: &cache.v,
            tokens: step.tokens,
        }
        .record(recorder);
        self.attend(recorder, workspace, cache, step, shape);
        if step.few() {
            self.output_few(recorder, workspace, step, routes);
        } else {
            self.output_many(recorder, workspace, step, routes);
        }
    }

    fn project_few(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        let active = self.spec.router.active();
        let query = RoutedMatvec {
            src: &workspace.xn,
            matrix: &self.weights.query,
            routes: Some(routes),
            gated: false,
            bias: None,
            dst: &workspace.q,
            residual: false,
            rows: step.tokens * active,
            slots: 1,
            src_div: active,
        };
        query.record(recorder);
        RoutedMatvec {
            matrix: &self.weights.kv,
            routes: None,
            dst: &workspace.kv,
            rows: step.tokens,
            src_div: 1,
            ..query
        }
        .record(recorder);
    }

    fn project_many(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        let active = self.spec.router.active();
        Group {
            routes,
            assignments: step.tokens * active,
            experts: self.spec.router.experts,
            tile_rows: tile_rows(recorder.gpu()),
            into: &workspace.attention_groups,
        }
        .record(recorder);
        let query = RoutedMatmul {
            src: &workspace.xn,
            matrix: &self.weights.query,
            groups: Some(&workspace.attention_groups),
            bias: None,
            dst: &workspace.q,
            rows: step.tokens * active,
            src_div: active,
        };
        query.record(recorder);
        RoutedMatmul {
            matrix: &self.weights.kv,
            groups: None,
            dst: &workspace.kv,
            rows: step.tokens,
            src_div: 1,
            ..query
        }
        .record(recorder);
    }

    fn attend(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        cache: &LayerCache,
        step: &Step,
        shape: AttentionShape,
    ) {
        if step.few() {
            DecodeAttention {
                shape,
                spans: &workspace.spans,
                q: &workspace.q,
                k_cache: &cache.k,
                v_cache: &cache.v,
                partial: &workspace.partial,
                stats: &workspace.stats,
                out: &workspace.attended,
                tokens: step.tokens,
                last_position: step.last_position,
                keys: step.keys,
            }
            .record(recorder);
        } else {
            PrefillAttention {
                shape,
                spans: &workspace.spans,
                ranges: &workspace.ranges,
                q: &workspace.q,
                k_cache: &cache.k,
                v_cache: &cache.v,
                out: &workspace.attended,
                tokens: step.tokens,
                longest: step.longest,
                ranges_len: step.ranges,
                keys: step.keys,
            }
            .record(recorder);
        }
    }

    fn output_few(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        RoutedMatvec {
            src: &workspace.attended,
            matrix: &self.weights.output,
            routes: Some(routes),
            gated: true,
            bias: self.weights.output_bias.as_ref(),
            dst: &workspace.x,
            residual: true,
            rows: step.tokens,
            slots: self.spec.router.active(),
            src_div: 1,
        }
        .record(recorder);
    }

    fn output_many(&self, recorder: &mut Recorder, workspace: &Workspace, step: &Step, routes: Routes<'_>) {
        let active = self.spec.router.active();
        RoutedMatmul {
            src: &workspace.attended,
            matrix: &self.weights.output,
            groups: Some(&workspace.attention_groups),
            bias: None,
            dst: &workspace.expert_rows,
            rows: step.tokens * active,
            src_div: 1,
        }
        .record(recorder);
        Combine {
            rows: &workspace.expert_rows,
            routes,
            bias: self.weights.output_bias.as_ref(),
            x: &workspace.x,
            tokens: step.tokens,
            slots: active,
            width: self.spec.norm.width,
        }
        .record(recorder);
    }
}
