//! One pass of a step through the layers: what they share, where they are, and who may stand there.
//!
//! An observer or an edit is a [`Hook`]. A layer calls it at each named [`Place`], between two dispatches, with the buffers that
//! hold what was just computed and that the next dispatch reads; what it records runs there. Without one a pass is the same
//! dispatches as ever.

use crate::{
    gpu::{Buffer, Recorder},
    layers::{RouteCursor, Step, Workspace},
    ops::{AttentionKernel, ExpertChoice, HeadLayout, KeyValues, NewKeys, Positions, Routes, RowList},
};

/// Which block of which stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerIndex {
    /// Of the stack that reads sources, not of the one that writes.
    pub encoder: bool,
    /// From 0.
    pub layer: u32,
}

/// Which part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sublayer {
    /// Attention to the stack's own tokens.
    Attention,
    /// Attention to another stack's output.
    Cross,
    Mlp,
}

/// Where in a sublayer, in the order in which a pass reaches the places. Buffers are those of the [`Workspace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The router wrote `chosen`, `gates` and `route_scores`; nothing was sorted or multiplied by them yet. Only routed sublayers
    /// have this place; where routers look at the queries it comes after [`Place::Queries`].
    Routes,
    /// `q` and `kv` (and `values`, from value experts), as projected: no position turned them, no cache has them.
    Queries,
    /// `attended`: each head's output, one row for each slot of a token. `q` may have been turned meanwhile, by the kernels that
    /// run for many rows: who needs it here copies it at [`Place::Queries`].
    Attended,
    /// `hidden`: the inside of an MLP's experts, one row for each slot of a token.
    Hidden,
    /// `x`: the residual stream with the sublayer's output in it.
    Output,
}

/// Who observes or edits a pass.
pub trait Hook {
    /// Called at each place. What is recorded here runs after what the place describes and before what reads it.
    fn reach(&mut self, recorder: &mut Recorder, site: &Site<'_>);
}

/// What there is at a place.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub layer: LayerIndex,
    pub sublayer: Sublayer,
    pub place: Place,
    pub workspace: &'a Workspace,
    pub step: &'a Step,
    /// The rows of the sublayer: which experts the tokens chose.
    pub rows: RowList<'a>,
    /// How its router chooses, where it has one.
    pub choice: Option<ExpertChoice>,
    pub inside: Inside<'a>,
}

/// What there is besides, by the kind of sublayer.
#[derive(Clone, Copy)]
pub enum Inside<'a> {
    Attention(AttentionSite<'a>),
    /// Channels inside an expert.
    Mlp {
        hidden: u32,
    },
}

/// What an attention has.
#[derive(Clone, Copy)]
pub struct AttentionSite<'a> {
    pub heads: HeadLayout,
    /// How scores become weights.
    pub kernel: AttentionKernel,
    /// What turns queries and keys, or is added to keys.
    pub positions: Positions<'a>,
    /// `[tokens]` [`Span`](crate::ops::Span)s, or `[tokens, kv_heads]` of them where heads have their own.
    pub spans: &'a Buffer,
    /// Keys and values; those of the step's own tokens stand there from [`Place::Attended`] on.
    pub cache: &'a KeyValues,
    /// The step's own, as they are before that.
    pub new: NewKeys<'a>,
    /// The experts whose heads the rows of queries and outputs are; none where head `j` of slot `s` is head `s · heads + j`: in dense
    /// attention, and where experts share a head.
    pub routes: Option<Routes<'a>>,
}

/// What the layers of one step share.
pub struct Pass<'a, 'r> {
    pub recorder: &'r mut Recorder,
    pub workspace: &'a Workspace,
    pub step: &'a Step,
    /// Where the next router writes.
    pub routes: RouteCursor<'a>,
    /// The block that is being recorded.
    pub layer: LayerIndex,
    hooks: Vec<&'r mut dyn Hook>,
}

impl<'a, 'r> Pass<'a, 'r> {
    /// From the first layer on, with nobody looking.
    pub fn new(recorder: &'r mut Recorder, workspace: &'a Workspace, step: &'a Step) -> Self {
        let routes = workspace.routes(step.tokens);
        Self { recorder, workspace, step, routes, layer: LayerIndex::default(), hooks: Vec::new() }
    }

    /// With one more who edits, or looks on: each after those before.
    pub fn with_hook(mut self, hook: Option<&'r mut dyn Hook>) -> Self {
        self.hooks.extend(hook);
        self
    }

    /// Lets the hooks, if there are any, stand at a place.
    pub(super) fn reach(
        &mut self,
        sublayer: Sublayer,
        place: Place,
        rows: RowList<'a>,
        choice: Option<ExpertChoice>,
        inside: Inside<'a>,
    ) {
        let (layer, workspace, step) = (self.layer, self.workspace, self.step);
        for hook in &mut self.hooks {
            hook.reach(
                self.recorder,
                &Site { layer, sublayer, place, workspace, step, rows, choice, inside },
            );
        }
    }
}
