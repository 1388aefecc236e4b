//! A greedy text of the demo model against transformers' own.

use super::{Lab, Run};

/// In the kernels that the device runs.
#[cfg(all(feature = "demo-model", feature = "tokenizer"))]
pub(super) async fn check(run: &mut Run<'_>, lab: &Lab) {
    let (prompt, expected) = headwise_model_prose::GREEDY;
    run.case(lab, ("text", "demo model"), prompt, greedy(&lab.gpu, prompt, expected)).await;
}

/// How many characters are others.
#[cfg(all(feature = "demo-model", feature = "tokenizer"))]
async fn greedy(gpu: &crate::Gpu, prompt: &str, expected: &str) -> crate::Result<super::Finding> {
    use std::ops::ControlFlow;

    use crate::{Generate, Model, Source};
    let model = Model::load(gpu, &Source::demo(), Default::default()).await?;
    let options = Generate::new().greedy().stop_at([]).max_new(headwise_model_prose::GREEDY_TOKENS);
    let mut text = String::new();
    model
        .generate(prompt, &options, |token| {
            text.push_str(&token.text);
            ControlFlow::Continue(())
        })
        .await?;
    Ok(super::Finding::equal(text.as_bytes(), expected.as_bytes()))
}

#[cfg(not(all(feature = "demo-model", feature = "tokenizer")))]
pub(super) async fn check(_: &mut Run<'_>, _: &Lab) {}
