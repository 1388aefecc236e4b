//! Tensors that checkpoints carry along and that say nothing about the model: buffers that are computed, counters, what
//! training needs. All families leave them out alike.

/// How the names of such tensors end, whole parts of a name at a time.
const ENDS: [&str; 18] = [
    // Rotary frequencies and tables, which the config gives.
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    // Numbers of positions, and sinusoids of them.
    "position_ids",
    "embed_positions._float_tensor",
    // Causal masks, and what stands behind them.
    "attn.mask",
    "attn.masked_bias",
    "attention.masked_bias",
    "self_attn.masked_bias",
    "self_attention.masked_bias",
    "causal_mask",
    // ModuleFormer's sums of stick-breaking.
    "attn.cum_weight",
    // A counter of batches, the noise of gates, moments of Adam.
    "num_batches_tracked",
    "w_noise",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
];

/// What a training run saves beside the model, a head that values answers among it: how such names begin.
const STARTS: [&str; 4] = ["optimizer", "lr_scheduler", "grad_scaler", "v_head"];

/// Whether a tensor of this name says nothing about the model.
pub(super) fn says_nothing(name: &str) -> bool {
    let ends =
        |end: &&str| name.strip_suffix(*end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let starts = |start: &&str| name.strip_prefix(*start).is_some_and(|rest| rest.starts_with('.'));
    ENDS.iter().any(ends) || STARTS.iter().any(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_say_nothing_and_weights_do() {
        for name in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.rotary_emb.inv_freq",
            "rotary_emb.inv_freq",
            "transformer.h.3.attn.mask",
            "transformer.h.3.attn.cum_weight",
            "bn.num_batches_tracked",
            "optimizer.state.12.step",
            "model.norm.weight.exp_avg",
            "v_head.summary.weight",
        ] {
            assert!(says_nothing(name), "{name}");
        }
        for name in [
            "",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.bias",
            "x.inv_freq",
            "blocks.0.attn.proj.bias",
            "optimizer",
            "myw_noise",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
        ] {
            assert!(!says_nothing(name), "{name}");
        }
    }
}
