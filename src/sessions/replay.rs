//! Choices that tokens are made to take, in place of their routers'.

use super::{Session, TokenRoutes, routes::RouterRoutes};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, Recorder},
    layers::{Hook, Place, Site},
    models::{RouterPlace, StackSpec},
    ops::{ReplayRoutes, Span},
};

/// The expert of a slot that a token leaves empty, as in `shaders/shared/nobody.wgsl`.
const NOBODY: u32 = u32::MAX;

/// What the tokens of a session's sequences take.
pub(super) struct Replay {
    routers: Vec<RouterRoutes>,
    /// Choices of a token over all routers.
    width: usize,
    /// By sequence, position after position: `[positions, width]`
    chosen: Vec<Vec<u32>>,
    gates: Vec<Vec<f32>>,
    /// Those of the tokens of a step, router after router as in the workspace; open where a token chooses by itself.
    step_chosen: Buffer,
    step_gates: Buffer,
}

impl Replay {
    fn new(gpu: &Gpu, stack: &StackSpec, sequences: u32, step_tokens: u32) -> Result<Self> {
        let routers = RouterRoutes::of(stack);
        let width: usize = routers.iter().map(|router| router.slots).sum();
        let bytes = 4 * width as u64 * u64::from(step_tokens);
        gpu.fits("the choices of a step", bytes)?;
        gpu.plan("the choices of a step", 2 * bytes)?;
        let [step_chosen, step_gates] = [(); 2].map(|()| Buffer::new(gpu, "replay", bytes.max(4)));
        gpu.check("allocating the choices of a step")?;
        let none = sequences as usize;
        let (chosen, gates) = (vec![Vec::new(); none], vec![Vec::new(); none]);
        Ok(Self { routers, width, chosen, gates, step_chosen, step_gates })
    }

    /// Takes the choices of a sequence's tokens from position 0 on.
    fn set(&mut self, stack: &StackSpec, sequence: usize, routes: &[TokenRoutes]) -> Result<()> {
        let (mut chosen, mut gates) = (Vec::new(), Vec::new());
        for (token, routes) in routes.iter().enumerate() {
            if routes.layers.len() != stack.blocks.len() {
                let found = format!("{} layers at token {token}", routes.layers.len());
                return Err(Error::argument("routes", found, format!("the model's {}", stack.blocks.len())));
            }
            for router in &self.routers {
                let choices = routes.layers[router.layer].of(router.place);
                let at = || format!("layer {} at token {token}", router.layer);
                let (slots, experts) = (router.slots, router.experts);
                if choices.len() > slots {
                    let found = format!("{} choices in {}", choices.len(), at());
                    return Err(Error::argument("routes", found, format!("at most {slots}")));
                }
                if let Some(choice) =
                    choices.iter().find(|choice| choice.expert >= experts || !choice.gate.is_finite())
                {
                    let found = format!("expert {} with gate {} in {}", choice.expert, choice.gate, at());
                    return Err(Error::argument(
                        "routes",
                        found,
                        format!("one below {experts}, with a finite gate"),
                    ));
                }
                chosen.extend(choices.iter().map(|choice| choice.expert));
                gates.extend(choices.iter().map(|choice| choice.gate));
                chosen.resize(chosen.len() + slots - choices.len(), NOBODY);
                gates.resize(gates.len() + slots - choices.len(), 0.0);
            }
        }
        (self.chosen[sequence], self.gates[sequence]) = (chosen, gates);
        Ok(())
    }

    /// Writes down what the tokens of a step take.
    pub fn begin(&self, spans: &[Span]) {
        let (tokens, width) = (spans.len(), self.width);
        let (mut chosen, mut gates) = (vec![ReplayRoutes::OPEN; tokens * width], vec![0.0; tokens * width]);
        for (token, span) in spans.iter().enumerate() {
            let (sequence, from) = (span.sequence as usize, span.position as usize * width);
            let (Some(own), Some(own_gates)) =
                (self.chosen[sequence].get(from..from + width), self.gates[sequence].get(from..from + width))
            else {
                continue;
            };
            for router in &self.routers {
                let to = router.before * tokens + token * router.slots;
                let own_slots = router.before..router.before + router.slots;
                chosen[to..to + router.slots].copy_from_slice(&own[own_slots.clone()]);
                gates[to..to + router.slots].copy_from_slice(&own_gates[own_slots]);
            }
        }
        self.step_chosen.write(0, &chosen);
        self.step_gates.write(0, &gates);
    }
}

impl Hook for Replay {
    fn reach(&mut self, recorder: &mut Recorder, site: &Site<'_>) {
        if let (Place::Routes, Some(routes)) = (site.place, site.rows.routes()) {
            let (taken, gates, count) = (&self.step_chosen, &self.step_gates, site.rows.assignments());
            ReplayRoutes { taken, gates, routes, count }.record(recorder);
        }
    }
}

impl Session {
    /// Makes the tokens of a sequence take these choices, that at position `i` `routes[i]`, in place of what their routers choose;
    /// tokens behind choose by themselves. None ends it. Choices that a run of the same model with the same kernels reported give
    /// the bits of that run.
    ///
    /// # Errors
    /// A sequence that the session does not have, choices that are not this model's, and a model whose routers choose values, or
    /// from whole sequences.
    pub fn replay(&mut self, sequence: u32, routes: &[TokenRoutes]) -> Result<()> {
        self.position(sequence)?;
        let stack = &self.transformer.spec.stack;
        let values = stack
            .blocks
            .iter()
            .flat_map(|block| block.routers())
            .any(|(place, _)| place == RouterPlace::Values);
        if values || stack.cuts_sequences() {
            let found = "one whose routers choose values, or from whole sequences";
            return Err(Error::argument("model", found, "one whose tokens choose heads and MLP experts"));
        }
        // What was recorded reads what is about to be written.
        self.submit_recorded();
        let mut replay = match self.replay.take() {
            Some(replay) => replay,
            None => Replay::new(
                self.recorder.gpu(),
                &self.transformer.spec.stack,
                self.layout.sequences,
                self.layout.step_tokens,
            )?,
        };
        let set = replay.set(&self.transformer.spec.stack, sequence as usize, routes);
        self.replay = replay.chosen.iter().any(|chosen| !chosen.is_empty()).then_some(replay);
        set
    }
}
