//! Prompt readbacks in Firefox. It looks whether the GPU is done when work is submitted and otherwise ten times a second
//! (<https://bugzilla.mozilla.org/show_bug.cgi?id=1870699>): a readback that nothing follows takes 100 ms there, and 1 ms
//! where something is submitted each millisecond (Firefox 153, lavapipe). Drop this file once that bug is fixed.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use js_sys::{Function, Object, Promise, Reflect};
use wasm_bindgen::{JsCast, JsValue, closure::Closure, prelude::wasm_bindgen};
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(thread_local_v2, js_namespace = navigator, js_name = userAgent)]
    static USER_AGENT: Option<String>;

    #[wasm_bindgen(catch, js_namespace = scheduler, js_name = postTask)]
    fn post_task(task: &Function, options: &Object) -> Result<Promise, JsValue>;
}

thread_local! {
    static IS_FIREFOX: bool = USER_AGENT.with(|name| name.as_ref().is_some_and(|name| name.contains("Firefox/")));

    /// A task that does nothing, and when to do it.
    static NOTHING: (Function, Object) = {
        let delay = Object::new();
        // A fresh object takes any property.
        let _ = Reflect::set(&delay, &"delay".into(), &1.into());
        (Closure::<dyn FnMut()>::new(|| ()).into_js_value().unchecked_into(), delay)
    };
}

/// Waits for `answer` and, in Firefox, submits nothing to `queue` each millisecond until it is there.
pub(super) async fn nudging<F: Future>(queue: &wgpu::Queue, answer: F) -> F::Output {
    let mut answer = pin!(answer);
    while IS_FIREFOX.with(|&yes| yes)
        && let Some(mut tick) = tick()
    {
        let next = poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Pin::new(&mut tick).poll(context).map(|_| None),
        });
        match next.await {
            Some(output) => return output,
            None => queue.submit([]),
        };
    }
    answer.await
}

/// A millisecond. `setTimeout` would take four, once it is called from its own tasks; browsers without a scheduler, Firefox
/// before 142 among them, have no tick.
fn tick() -> Option<JsFuture> {
    NOTHING.with(|(nothing, delay)| post_task(nothing, delay)).ok().map(JsFuture::from)
}
