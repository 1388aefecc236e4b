//! A greedy text of a model against what it must be.

use std::ops::ControlFlow;

use super::{Finding, Lab, Run};
use crate::{Generate, Gpu, Model, Result, Source};

/// What a model must write.
pub(super) struct Greedy {
    pub model: Source,
    pub prompt: String,
    pub expected: String,
    pub tokens: usize,
}

/// In the kernels that the device runs.
pub(super) async fn check(run: &mut Run<'_>, lab: &Lab) {
    let Some(greedy) = run.selftest.text.take().or_else(Greedy::demo) else { return };
    run.case(lab, ("text", "greedy"), &greedy.prompt, greedy.write(&lab.gpu)).await;
}

impl Greedy {
    /// The demo model's, by transformers.
    fn demo() -> Option<Self> {
        #[cfg(feature = "demo-model")]
        {
            use headwise_model_prose::{GREEDY, GREEDY_TOKENS};
            let [prompt, expected] = <[&str; 2]>::from(GREEDY).map(str::to_owned);
            Some(Self { model: Source::demo(), prompt, expected, tokens: GREEDY_TOKENS })
        }
        #[cfg(not(feature = "demo-model"))]
        None
    }

    /// How many characters are others.
    async fn write(&self, gpu: &Gpu) -> Result<Finding> {
        let model = Model::load(gpu, &self.model, Default::default()).await?;
        let options = Generate::new().greedy().stop_at([]).max_new(self.tokens);
        let mut text = String::new();
        model
            .generate(&self.prompt, &options, |token| {
                text.push_str(&token.text);
                ControlFlow::Continue(())
            })
            .await?;
        Ok(Finding::equal(text.as_bytes(), self.expected.as_bytes()))
    }
}
