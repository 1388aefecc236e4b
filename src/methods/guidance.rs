//! Guidance by contrast with a worse model of the same weights (SoftPAG, arXiv 2506.10978, there of images): one whose heads look at
//! nothing in particular.
//!
//! ```text
//! guided = (1 + w) · logits − w · logits of the edited model
//! ```

use crate::{
    Edits, Error, Logits, Model, Result,
    sessions::{Run, SessionOptions},
};

/// What a model is contrasted with, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    edits: Edits,
    weight: f32,
}

impl Guidance {
    /// Contrasts with the model under these edits, such as `L1H2:uniform=0.5` of heads that matter, by weight `w`; 0 is no guidance.
    ///
    /// # Errors
    /// A weight that is no number.
    pub fn new(edits: Edits, weight: f32) -> Result<Self> {
        match weight.is_finite() {
            true => Ok(Self { edits, weight }),
            false => Err(Error::argument("weight", weight, "a finite number")),
        }
    }

    /// The worse model, edited as the given one is, and by these edits.
    fn worse(&self, model: &Model) -> Result<Model> {
        super::with_edits(model, self.edits.iter().cloned())
    }

    /// `logits` becomes what is guided.
    fn mix(&self, logits: &mut [f32], worse: &[f32]) {
        logits.iter_mut().zip(worse).for_each(|(own, worse)| *own += self.weight * (*own - worse));
    }

    /// The guided logits of every token of a text; routes are those of the model.
    ///
    /// # Errors
    /// As [`Model::logits`], and edits that do not fit the model.
    pub async fn logits(&self, model: &Model, ids: &[u32]) -> Result<Logits> {
        let worse = self.worse(model)?.logits(&[ids]).await?.pop().unwrap_or_default();
        let mut guided = model.logits(&[ids]).await?.pop().unwrap_or_default();
        self.mix(&mut guided.values, &worse.values);
        Ok(guided)
    }

    /// Goes on with a text, the likeliest token each time: so many tokens, or fewer where the context ends.
    ///
    /// # Errors
    /// An empty text, and as [`logits`](Self::logits).
    pub async fn write(&self, model: &Model, ids: &[u32], most: usize) -> Result<Vec<u32>> {
        super::check_writes(model).await?;
        let mut sessions =
            [model.session(SessionOptions::new())?, self.worse(model)?.session(SessionOptions::new())?];
        let room = (sessions[0].positions() as usize).saturating_sub(ids.len());
        let mut written: Vec<u32> = Vec::new();
        for _ in 0..most.min(room) {
            let fed = written.last().map_or(ids, std::slice::from_ref);
            let mut both = Vec::new();
            for session in &mut sessions {
                for runs in session.steps(&[Run::ids(0, fed)]) {
                    session.forward(&runs)?;
                }
                both.push(session.logits(0).await?);
            }
            let [own, worse] = &mut both[..] else { break };
            self.mix(own, worse);
            // The lower id first among equals.
            let best = (0..own.len()).rev().max_by(|&a, &b| own[a].total_cmp(&own[b]));
            written.extend(best.map(|id| id as u32));
        }
        Ok(written)
    }
}
