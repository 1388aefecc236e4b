//! Which tensor the output head is. A config may tie it to the embedding table, and files may say otherwise.
//!
//! One rule for all families, that of transformers 5: of a tied pair either name will do where the files have one of the
//! two; where they have both, values that are equal are one table, and values that differ are two.

use super::{InputNames, TransformerNames};
use crate::{
    Result,
    weights::{Checkpoint, Source},
};

impl TransformerNames {
    /// Looks for a tied pair in the files, by name. Returns the names of the pair, which may both be there or one.
    pub(super) fn find_tied(&mut self, checkpoint: &Checkpoint) -> Vec<String> {
        let head = &mut self.head;
        let InputNames::Tokens(input) = &mut self.input else { return Vec::new() };
        if !head.tied {
            return Vec::new();
        }
        let table = &mut input.table;
        let pair = vec![table.clone(), head.weight.clone()];
        match (checkpoint.tensor(table), checkpoint.tensor(&head.weight)) {
            (Some(_), Some(_)) => head.shared = false,
            (None, Some(_)) => table.clone_from(&head.weight),
            (_, None) => {}
        }
        pair
    }

    /// Makes one table of a tied pair of which the files have both, if the values are the same; says whether it has. Where
    /// it would take a second download to know, they stay two.
    ///
    /// # Errors
    /// What the checkpoint's reader finds.
    pub(super) async fn join_equal(&mut self, source: &Source, checkpoint: &Checkpoint) -> Result<bool> {
        let Self { input, head, .. } = self;
        let InputNames::Tokens(input) = input else { return Ok(false) };
        if head.shared || !head.tied || !source.is_at_hand() {
            return Ok(false);
        }
        if let (Some(own), Some(table)) = (checkpoint.tensor(&head.weight), checkpoint.tensor(&input.table)) {
            head.shared = checkpoint.alike(source, own, table).await?;
        }
        Ok(head.shared)
    }
}
