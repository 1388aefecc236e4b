//! The JavaScript surface of the wasm build. `web/src/worker.ts` is its one caller.

#[cfg(target_arch = "wasm32")]
mod engine;
#[cfg(target_arch = "wasm32")]
mod selftest;
#[cfg(any(target_arch = "wasm32", test))]
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))] // the engine is its reader
mod types;
