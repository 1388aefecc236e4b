//! What captures mean in a model: which layers, which heads, how many values.

use crate::{
    Error, Result,
    layers::{SitePart, Sublayer},
    models::{BlockSpec, TransformerSpec},
    ops::RowStatistics,
    probes::{Capture, Observe, Stack, Unit, What},
};

/// What a capture means in one layer.
pub(super) struct LayerCapture {
    pub layer: u32,
    /// Their numbers; 0 where the layer has it once.
    pub heads: Vec<u32>,
    /// Values of a head; none of a pattern, which is as wide as what a step sees.
    pub width: u32,
}

/// The layers that a capture means.
///
/// # Errors
/// [`Error::Argument`] that names the capture, and why no layer has that.
pub(super) fn resolve(
    spec: &TransformerSpec,
    observe: &Observe,
    capture: &Capture,
) -> Result<Vec<LayerCapture>> {
    let refused = |found: String, expected: String| {
        Error::argument("capture", format!("{found} in {capture}"), expected)
    };
    if capture.at.stack != Stack::Main {
        let expected = "the stack that makes logits: sources of translations are not recorded yet";
        return Err(refused("another stack".to_owned(), expected.to_owned()));
    }
    let blocks = &spec.stack.blocks;
    let layers = match capture.at.layer {
        Some(layer) if layer as usize >= blocks.len() => {
            let expected = format!("one below the {} of the model", blocks.len());
            return Err(refused(format!("layer {layer}"), expected));
        }
        Some(layer) => layer..layer + 1,
        None => 0..blocks.len() as u32,
    };
    let (mut found, mut why) = (Vec::new(), None);
    for layer in layers {
        match heads_of(spec, observe, &blocks[layer as usize], capture) {
            Ok((heads, width)) => found.push(LayerCapture { layer, heads, width }),
            Err((found, expected)) => {
                why.get_or_insert_with(|| refused(format!("{found} of layer {layer}"), expected));
            }
        }
    }
    // Of all layers those are meant that have it.
    match why.filter(|_| found.is_empty()) {
        Some(why) => Err(why),
        None => Ok(found),
    }
}

/// Where something of a block stands; nothing of what is computed from it.
pub(super) fn part_of(what: What, block: &BlockSpec) -> Option<(Sublayer, SitePart)> {
    Some(match what {
        What::Q => (Sublayer::Attention, SitePart::Queries),
        What::K => (Sublayer::Attention, SitePart::Keys),
        What::V => (Sublayer::Attention, SitePart::Values),
        What::Z => (Sublayer::Attention, SitePart::Outputs),
        What::ResidPre => (Sublayer::Attention, SitePart::Before),
        What::ResidMid => (Sublayer::Attention, SitePart::After),
        What::ResidPost if block.mlp.is_some() => (Sublayer::Mlp, SitePart::After),
        What::ResidPost => (Sublayer::Attention, SitePart::After),
        What::Pattern | What::Rows | What::Router => return None,
    })
}

/// What was found, and what was expected.
type Refusal = (String, String);

/// The heads of a layer that a capture means, and the values of each.
fn heads_of(
    spec: &TransformerSpec,
    observe: &Observe,
    block: &BlockSpec,
    capture: &Capture,
) -> std::result::Result<(Vec<u32>, u32), Refusal> {
    let attention = &block.attention;
    let layout = attention.head_layout();
    let width = match capture.what {
        What::ResidPre | What::ResidMid | What::ResidPost => return Ok((vec![0], spec.width)),
        What::Router => {
            let routers = block.routers().filter(|(_, router)| router.routes());
            // Scores, chosen experts and gates.
            let values = routers.map(|(_, router)| router.scores_per_token() + 2 * router.routes_per_token());
            return match values.sum() {
                0 => Err(("routers".to_owned(), "a routed layer".to_owned())),
                values => Ok((vec![0], values)),
            };
        }
        What::Pattern | What::Rows if layout.head_spans => {
            let found = "rows of heads that choose from whole sequences";
            return Err((found.to_owned(), "q, k, v or z".to_owned()));
        }
        What::Q | What::K => layout.key_dim,
        What::V | What::Z => layout.value_dim,
        What::Pattern => 0,
        What::Rows => RowStatistics::COLUMNS + observe.masses().len() as u32,
    };
    let of_keys = matches!(capture.what, What::K | What::V);
    let count = if of_keys { attention.kv_heads } else { attention.query_heads() };
    let heads = match (capture.at.unit, capture.at.index) {
        (_, None) => 0..count,
        (Unit::HeadExpert, Some(expert)) => {
            let (each, experts) = (attention.heads_per_expert, attention.router.experts());
            if !attention.router.routes() || attention.query_share > 1 {
                let found = "a head expert, of an attention whose experts have no heads of their own";
                return Err((found.to_owned(), "heads (H)".to_owned()));
            }
            if expert >= experts {
                return Err((format!("head expert {expert}"), format!("one below its {experts}")));
            }
            expert * each..(expert + 1) * each
        }
        (_, Some(head)) if head >= count => {
            let kind = if of_keys { "key/value heads" } else { "heads" };
            return Err((format!("head {head}"), format!("one below its {count} {kind}")));
        }
        (_, Some(head)) => head..head + 1,
    };
    Ok((heads.collect(), width))
}
