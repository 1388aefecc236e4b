//! What an edit means in a block: which sublayer, which part of it, which heads or experts.

use std::ops::Range;

use crate::{
    layers::{ExpertMlpSpec, HeadMixtureSpec, KvProjection, RouterSpec, Scope, SitePart, Sublayer},
    models::BlockSpec,
    probes::{Change, Edit, Stack, Unit, What},
};

/// What a sublayer has.
#[derive(Clone, Copy)]
pub(super) struct Units {
    pub experts: u32,
    pub heads: u32,
    kv_heads: u32,
}

impl Units {
    fn of_attention(spec: &HeadMixtureSpec) -> Self {
        let (experts, heads) = (spec.router.experts(), spec.query_heads());
        Self { experts, heads, kv_heads: spec.kv_heads }
    }

    fn of_mlp(spec: &ExpertMlpSpec) -> Self {
        let experts = spec.router.experts();
        Self { experts, heads: experts, kv_heads: 0 }
    }

    /// How many stand in a part.
    pub fn of(self, part: SitePart) -> u32 {
        match part {
            SitePart::Queries | SitePart::Outputs | SitePart::Hidden => self.heads,
            SitePart::Keys | SitePart::Values => self.kv_heads,
            SitePart::Before | SitePart::After => 1,
        }
    }
}

/// What an edit means in one block.
pub(super) struct Meant {
    pub sublayer: Sublayer,
    pub part: SitePart,
    pub units: Units,
    pub own: Range<u32>,
    /// Channels of one of them.
    pub width: u32,
}

/// What was found, and what was expected.
pub(super) type Refusal = (String, String);

/// Which sublayer of a block an edit names, and what of it.
pub(super) fn meant(block: &BlockSpec, edit: &Edit) -> Result<Meant, Refusal> {
    if edit.at.unit == Unit::Layer {
        return residual(block, edit);
    }
    let of_mlp = edit.at.unit == Unit::MlpExpert;
    let (sublayer, attention) = match (edit.at.stack, &block.cross) {
        (Stack::Cross, _) if of_mlp => {
            return Err((
                "an MLP".to_owned(),
                "heads (H) or head experts (A), to attend to a source".to_owned(),
            ));
        }
        (Stack::Cross, Some(_)) if matches!(edit.change, Change::Identity(_)) => {
            return Err((
                "heads that do not see their own token".to_owned(),
                "uniform, or others' heads".to_owned(),
            ));
        }
        (Stack::Cross, Some(_)) if matches!(edit.change, Change::Row { .. }) => {
            return Err((
                "rows of an attention to a source".to_owned(),
                "uniform, or rows of heads that attend to their own text".to_owned(),
            ));
        }
        (Stack::Cross, Some(cross)) => (Sublayer::Cross, cross),
        (Stack::Cross, None) => {
            return Err(("an attention to a source".to_owned(), "a model that translates".to_owned()));
        }
        (Stack::Main | Stack::Encoder, _) => (Sublayer::Attention, &block.attention),
    };
    if of_mlp {
        let Some(mlp) = &block.mlp else {
            return Err((
                "MLP experts of a layer without an MLP".to_owned(),
                "heads (H) or head experts (A)".to_owned(),
            ));
        };
        let router = &mlp.router;
        let own = routed(router, "the MLP", edit)?;
        let units = Units::of_mlp(mlp);
        return Ok(Meant { sublayer: Sublayer::Mlp, part: SitePart::Hidden, units, own, width: mlp.hidden });
    }
    let layout = attention.head_layout();
    let units = Units::of_attention(attention);
    let (part, count, width) = match edit.what() {
        What::Q => (SitePart::Queries, units.heads, layout.key_dim),
        What::K => (SitePart::Keys, units.kv_heads, layout.key_dim),
        What::V => (SitePart::Values, units.kv_heads, layout.value_dim),
        _ => (SitePart::Outputs, units.heads, layout.value_dim),
    };
    if attention.kv == KvProjection::Memory && matches!(part, SitePart::Keys | SitePart::Values) {
        let found = format!("{} of an attention to a source", edit.what().name());
        return Err((found, "z or q: its keys and values are the source's".to_owned()));
    }
    if layout.head_spans && matches!(edit.change, Change::Row { .. }) {
        let found = "rows of heads that keep only what was routed to them".to_owned();
        return Err((found, "identity or uniform: positions are not where their keys are".to_owned()));
    }
    let own = match edit.at.unit {
        Unit::Head => numbered(edit, count, if count == units.heads { "heads" } else { "key/value heads" })?,
        _ => {
            let experts = routed(&attention.router, "the attention", edit)?;
            match edit.change.of_router() {
                true => experts,
                false if attention.query_share > 1 => {
                    let found = "a change of the heads of experts that share them".to_owned();
                    return Err((found, "off, masked, forced or bias of them, or heads (H)".to_owned()));
                }
                false => {
                    let each = attention.heads_per_expert;
                    experts.start * each..experts.end * each
                }
            }
        }
    };
    Ok(Meant { sublayer, part, units, own, width })
}

/// The residual stream that an edit of a layer names.
fn residual(block: &BlockSpec, edit: &Edit) -> Result<Meant, Refusal> {
    if edit.at.stack == Stack::Cross {
        return Err(("a layer of an attention to a source".to_owned(), "a layer, or its heads".to_owned()));
    }
    let (sublayer, units) = match (edit.what(), &block.mlp) {
        (What::ResidPost, Some(mlp)) => (Sublayer::Mlp, Units::of_mlp(mlp)),
        _ => (Sublayer::Attention, Units::of_attention(&block.attention)),
    };
    Ok(Meant { sublayer, part: SitePart::After, units, own: 0..1, width: block.attention.norm.width })
}

/// The experts that an edit names.
fn routed(router: &RouterSpec, of: &str, edit: &Edit) -> Result<Range<u32>, Refusal> {
    if !router.routes() {
        return Err((
            format!("experts of {of}, which is not routed"),
            "a routed layer, or heads (H)".to_owned(),
        ));
    }
    if edit.change.of_router() && router.scope != Scope::Token {
        let expected = "scale, as heads choose from whole sequences".to_owned();
        return Err((format!("a choice of {of}"), expected));
    }
    let experts = numbered(edit, router.experts(), "experts")?;
    if matches!(edit.change, Change::Masked | Change::Forced | Change::Bias(_)) {
        let shared = router.choice.shared;
        if edit.at.index.is_some_and(|index| index < shared) {
            let expected = format!("one from {shared} on: those before it are shared by all tokens");
            return Err((format!("expert {}", experts.start), expected));
        }
        return Ok(experts.start.max(shared)..experts.end);
    }
    Ok(experts)
}

/// The number that an edit names, or all.
fn numbered(edit: &Edit, count: u32, what: &str) -> Result<Range<u32>, Refusal> {
    match edit.at.index {
        None => Ok(0..count),
        Some(index) if index < count => Ok(index..index + 1),
        Some(index) => {
            Err((format!("{} {index}", edit.at.unit.name()), format!("one below its {count} {what}")))
        }
    }
}
