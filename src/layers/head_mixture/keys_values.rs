//! Keys and values of a head mixture, and their way into the cache.

use super::{Call, HeadMixture};
use crate::{
    gpu::{Buffer, Recorder},
    layers::{KvProjection, LayerCache, Workspace},
    ops::{Activation, Bias, NewKeys, Output, RoutedLinear, RowList, Sums, remember},
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
        RoutedLinear {
            bias: Bias::of_all(bias.as_ref()),
            ..RoutedLinear::dense(tokens, memory, matrix, &workspace.kv)
        }
        .record(recorder);
        let heads = self.spec.head_layout();
        remember(recorder, heads, &workspace.spans, &workspace.kv, &cache.kv, tokens);
    }

    /// The values of each head from its value experts (SwitchHead, arXiv 2312.07987):
    /// `v(t,h) = Σ_s gate · Wv[expert] · x_t`.
    pub(super) fn mix_values(&self, recorder: &mut Recorder, call: &Call<'_>) {
        let (Some((matrix, router)), Some(routes)) = (&self.weights.values, call.value_routes) else {
            return;
        };
        let Call { workspace, step, input: src, .. } = *call;
        router.record_linear(recorder, workspace, src, self.spec.norm.width, step.tokens, routes);
        let (active, experts) = (router.spec.active(), router.spec.experts());
        let rows = RowList::routed(step.tokens, active, experts, routes, &workspace.value_groups);
        rows.sort(recorder);
        RoutedLinear {
            rows,
            src,
            src_div: active,
            normed: self.norm.norms_input(),
            matrix,
            bias: Bias::None,
            activation: Activation::None,
            output: Output::Sums(Sums {
                dst: &workspace.values,
                of: router.spec.choice.top_k,
                bias: None,
                residual: false,
                products: &workspace.expert_rows,
            }),
            alongside: None,
        }
        .record(recorder);
    }

    /// What the step adds to the cache.
    pub(super) fn new_keys<'a>(&self, call: &Call<'a>) -> NewKeys<'a> {
        let workspace = call.workspace;
        match self.spec.kv {
            KvProjection::Memory => NewKeys::None,
            KvProjection::Projected => NewKeys::Projected(&workspace.kv),
            KvProjection::Identity => NewKeys::Same(call.input),
            KvProjection::MixedValues(_) => NewKeys::Apart { keys: &workspace.kv, values: &workspace.values },
        }
    }
}
