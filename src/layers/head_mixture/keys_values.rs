//! Keys and values of a head mixture, and their way into the cache.

use super::{Call, HeadMixture};
use crate::{
    gpu::{Buffer, Recorder},
    layers::{AttentionKernel, KvProjection, LayerCache, PositionEncoding, Workspace, linear::dense},
    ops::{
        Activation, AttentionShape, Bias, CacheAppend, Combine, Group, RopeAttentionDecode, RopeCache,
        RoutedMatmul, RoutedMatvec, head_stride, tile_rows,
    },
};

impl HeadMixture {
    /// Fills the cache of a layer that attends to another stack's output, `memory` `[tokens, width]`, which stands where
    /// `workspace.spans` says.
    pub fn remember(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        memory: &Buffer,
        cache: &LayerCache,
        tokens: u32,
    ) {
        let Some((matrix, bias)) = &self.weights.kv else { return };
        let bias = Bias::of_all(bias.as_ref());
        dense(recorder, memory, matrix, bias, Activation::None, &workspace.kv, tokens);
        let shape = cache.size.shape(&self.spec);
        append_projected(recorder, &workspace.spans, &workspace.kv, shape, cache, tokens);
    }

    /// The values of each head from its value experts (SwitchHead, arXiv 2312.07987):
    /// `v(t,h) = Σ_s gate · Wv[expert] · x_t`.
    pub(super) fn mix_values(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let (Some((matrix, router)), Some(routes)) = (&self.weights.values, call.value_routes) else {
            return;
        };
        let Call { workspace, step, input: src, .. } = *call;
        router.record_linear(recorder, workspace, src, self.spec.norm.width, step.tokens, routes);
        let (slots, active) = (router.spec.choice.top_k, router.spec.active());
        let rows = step.tokens * self.spec.kv_heads;
        if call.few {
            RoutedMatvec {
                beside: None,
                src,
                matrix,
                routes: Some(routes),
                gated: true,
                bias: Bias::None,
                activation: Activation::None,
                dst: &workspace.values,
                residual: false,
                rows,
                slots,
                src_div: active,
            }
            .record(recorder);
            return;
        }
        let groups = &workspace.attention_groups;
        let (assignments, experts) = (step.tokens * active, router.spec.experts());
        let tile_rows = tile_rows(recorder.gpu(), assignments, experts);
        Group { routes, assignments, experts, tile_rows, into: groups }.record(recorder);
        RoutedMatmul {
            src,
            matrix,
            groups: Some(groups),
            bias: Bias::None,
            activation: Activation::None,
            dst: &workspace.expert_rows,
            rows: assignments,
            src_div: active,
        }
        .record(recorder);
        Combine {
            rows: &workspace.expert_rows,
            routes: Some(routes),
            bias: None,
            x: &workspace.values,
            residual: false,
            tokens: rows,
            slots,
            width: head_stride(self.spec.head_dim),
        }
        .record(recorder);
    }

    /// Positions, and this step's keys and values into the cache.
    pub(super) fn append(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let Call { workspace, cache, step, shape, .. } = *call;
        let spans = call.spans();
        let values = self.weights.values.as_ref().map(|_| &workspace.values);
        let kv_width = shape.kv_heads * shape.head_stride();
        let append = |src, src_width, cache| CacheAppend {
            shape,
            spans,
            src,
            src_width,
            first: 0,
            cache,
            tokens: step.tokens,
        };
        match (self.spec.position, self.spec.kv) {
            (_, KvProjection::Memory) => {}
            _ if self.appends_itself(call) => {}
            (PositionEncoding::Rope { channels, .. }, _) => RopeCache {
                shape,
                spans,
                angles: &cache.angles,
                rotated: channels,
                q: &workspace.q,
                keys: &workspace.kv,
                values,
                k_cache: &cache.k,
                v_cache: &cache.v,
                tokens: step.tokens,
            }
            .record(recorder),
            (_, KvProjection::Projected) => {
                append_projected(recorder, spans, &workspace.kv, shape, cache, step.tokens);
            }
            (_, KvProjection::Identity) => {
                append(call.input, self.spec.norm.width, &cache.k).record(recorder);
            }
            (_, KvProjection::MixedValues(_)) => {
                append(&workspace.kv, kv_width, &cache.k).record(recorder);
                append(&workspace.values, kv_width, &cache.v).record(recorder);
            }
        }
    }

    /// Whether the attention kernel rotates and appends, as it does for tokens that are alone in their sequences' step.
    pub(super) fn appends_itself(&self, call: &Call<'_>) -> bool {
        let fits = match self.spec.position {
            PositionEncoding::Rope { channels, .. } => RopeAttentionDecode::fits(&call.shape, channels),
            PositionEncoding::Relative { .. } | PositionEncoding::None => false,
        };
        let plain = self.spec.kv == KvProjection::Projected && self.spec.kernel == AttentionKernel::Softmax;
        fits && plain && call.few && call.step.longest == 1
    }
}

/// Keys and values from `src`, keys first, into the cache as they are.
fn append_projected(
    recorder: &mut Recorder,
    spans: &Buffer,
    src: &Buffer,
    shape: AttentionShape,
    cache: &LayerCache,
    tokens: u32,
) {
    let width = shape.kv_heads * shape.head_stride();
    for (first, cache) in [(0, &cache.k), (width, &cache.v)] {
        CacheAppend { shape, spans, src, src_width: 2 * width, first, cache, tokens }.record(recorder);
    }
}
