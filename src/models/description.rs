//! What a family makes of a config: what the model is for, what it is, and where its tensors are.

use std::sync::Arc;

use super::{Classes, TransformerNames, TransformerSpec};
use crate::{Result, weights::Checkpoint};

/// What a model is for.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// Continue a text.
    Generate,
    /// Read a source, write its translation.
    Translate {
        /// What a translation starts with.
        start: u32,
        /// What ends a source and a translation.
        end: u32,
    },
    /// Say what stands behind masks.
    FillMask {
        /// The mask.
        mask: u32,
        /// What ends a text.
        #[cfg_attr(not(feature = "tokenizer"), expect(dead_code, reason = "only texts lack it"))]
        end: u32,
    },
    /// Name what an image shows.
    Classify(Arc<Classes>),
}

impl Task {
    /// As in `info`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Translate { .. } => "translate",
            Self::FillMask { .. } => "fill",
            Self::Classify(_) => "classify",
        }
    }
}

/// What a family says of a model.
pub(crate) struct Description {
    pub family: &'static str,
    pub task: Task,
    pub spec: TransformerSpec,
    pub names: TransformerNames,
}

/// What is left to do once a family has checked a config in itself: what only the tensors decide.
pub(crate) type Describe = Box<dyn FnOnce(&Checkpoint) -> Result<Description> + Send>;

impl Description {
    /// Of a config that says it all.
    pub fn whole(self) -> Describe {
        Box::new(|_| Ok(self))
    }
}
