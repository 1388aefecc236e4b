//! Whether the browser's device computes right.

use headwise::{Gpu, GpuOptions, Selftest, SelftestRow, Source};
use js_sys::Function;
use wasm_bindgen::prelude::*;

use crate::{
    engine::{json, parse},
    types::SelftestOptions,
};

/// Tests it: the report as JSON. `options` are the JSON of [`SelftestOptions`]; `on_row` gets each row as JSON, when it begins and
/// after each of its cases.
#[wasm_bindgen]
pub async fn selftest(options: String, on_row: Function) -> Result<String, JsError> {
    console_error_panic_hook::set_once();
    let SelftestOptions { kernels, model, filter } = parse(&options)?;
    let gpu = Gpu::new(GpuOptions::new().kernels(kernels.unwrap_or_default())).await?;
    let (prompt, expected) = headwise_model_prose::GREEDY;
    let mut selftest = Selftest::new()
        .text(Source::http(model), prompt, expected, headwise_model_prose::GREEDY_TOKENS)
        .progress(|row: &SelftestRow| {
            // A row is always JSON, and a page that throws while it shows one makes no row wrong.
            if let Ok(row) = json(row) {
                let _ = on_row.call1(&JsValue::NULL, &row.into());
            }
        });
    if let Some(filter) = filter {
        selftest = selftest.filter(filter);
    }
    json(&gpu.selftest(selftest).await?)
}
