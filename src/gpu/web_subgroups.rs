//! Subgroups in a browser. wgpu 30 does not know the browser's feature and so never asks for it
//! (<https://github.com/gfx-rs/wgpu/issues/5555>): drop this file once it maps `subgroups` to `Features::SUBGROUP`.

use js_sys::{Array, Function, Object, Proxy, Reflect};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};

const FEATURE: &str = "subgroups";

/// Line that a browser wants before a kernel with subgroup operations, and that naga refuses
/// (<https://github.com/gfx-rs/wgpu/issues/8202>).
pub(super) const ENABLE: &str = "enable subgroups;\n";

/// Runs `request`, in which devices are asked for; adapters that have subgroups give them to these devices.
///
/// `GPUAdapter.prototype.requestDevice` is another function meanwhile, and then again the browser's own, so that the
/// page's other devices are what the page asks for. Without a `GPUAdapter`, `request` just runs.
pub(super) fn requesting<T>(request: impl FnOnce() -> T) -> T {
    let Some((prototype, own)) = request_device() else { return request() };
    // The trap of a proxy gets the adapter as an argument; a plain closure would not see its `this`.
    let apply = Closure::<dyn FnMut(Function, JsValue, Array) -> JsValue>::new(ask);
    let handler = Object::new();
    set(&handler, "apply", apply.as_ref());
    set(&prototype, REQUEST, &Proxy::new(&own, &handler));
    let result = request();
    set(&prototype, REQUEST, &own);
    result
}

/// Whether the device was made with subgroups.
pub(super) fn enabled(device: &wgpu::Device) -> bool {
    device.as_webgpu().is_some_and(|device| has_subgroups(device.as_ref()))
}

const REQUEST: &str = "requestDevice";

/// The prototype of adapters and its method.
fn request_device() -> Option<(JsValue, Function)> {
    let adapter = get(&js_sys::global(), "GPUAdapter")?;
    let prototype = get(&adapter, "prototype")?;
    let own = get(&prototype, REQUEST)?.dyn_into().ok()?;
    Some((prototype, own))
}

/// `adapter.requestDevice(...arguments)`, with one more required feature where the adapter has it.
fn ask(own: Function, adapter: JsValue, arguments: Array) -> JsValue {
    let features = get(&arguments.get(0), "requiredFeatures").and_then(|list| list.dyn_into::<Array>().ok());
    if let Some(features) = features.filter(|_| has_subgroups(&adapter)) {
        features.push(&FEATURE.into());
    }
    // The browser's own method throws nothing: its errors come in the promise.
    Reflect::apply(&own, &adapter, &arguments).unwrap_or_else(|error| js_sys::Promise::reject(&error).into())
}

/// Whether an adapter or a device has the feature.
fn has_subgroups(owner: &JsValue) -> bool {
    let ask = || {
        let features = get(owner, "features")?;
        let has: Function = get(&features, "has")?.dyn_into().ok()?;
        has.call1(&features, &FEATURE.into()).ok()?.as_bool()
    };
    ask().unwrap_or(false)
}

fn get(owner: &JsValue, name: &str) -> Option<JsValue> {
    Reflect::get(owner, &name.into()).ok().filter(|value| !value.is_undefined())
}

fn set(owner: &JsValue, name: &str, value: &JsValue) {
    // A frozen prototype stays as it is: then there are no subgroups.
    let _ = Reflect::set(owner, &name.into(), value);
}
