//! Time on the host.

/// A clock that started when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    #[cfg(not(target_arch = "wasm32"))]
    start: std::time::Instant,
    #[cfg(target_arch = "wasm32")]
    start: f64,
}

#[cfg(not(target_arch = "wasm32"))]
impl Clock {
    pub fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// `performance.now()`, which pages and workers have: `std::time::Instant` panics in a browser.
#[cfg(target_arch = "wasm32")]
impl Clock {
    pub fn start() -> Self {
        Self { start: now() }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        now() - self.start
    }
}

#[cfg(target_arch = "wasm32")]
fn now() -> f64 {
    use js_sys::{Function, Reflect};
    use wasm_bindgen::JsCast;
    let ask = || {
        let performance = Reflect::get(&js_sys::global(), &"performance".into()).ok()?;
        let now: Function = Reflect::get(&performance, &"now".into()).ok()?.dyn_into().ok()?;
        now.call0(&performance).ok()?.as_f64()
    };
    ask().unwrap_or_else(js_sys::Date::now) / 1000.0
}
