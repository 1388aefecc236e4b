//! One file over HTTP in a browser: a plain `GET` whose body is read as it arrives.

use crate::{Error, Result};
use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{ReadableStreamDefaultReader, Response, WorkerGlobalScope};

/// A response body. Dropping it ends the download.
pub(crate) struct Body {
    url: String,
    len: Option<u64>,
    stream: ReadableStreamDefaultReader,
    /// What has arrived and was not read yet.
    pending: Uint8Array,
}

impl Body {
    /// Asks for `url`; `None` if the host has no such file.
    pub(crate) async fn get(url: &str) -> Result<Option<Self>> {
        let fail = |error: JsValue| failed(url, &error);
        // A page has the same `fetch` as a worker, so the cast is not checked.
        let scope: WorkerGlobalScope = js_sys::global().unchecked_into();
        let response = JsFuture::from(scope.fetch_with_str(url)).await.map_err(fail)?;
        let response: Response = response.dyn_into().map_err(fail)?;
        if is_absent(&response) {
            return Ok(None);
        }
        if !response.ok() {
            let status = format!("HTTP {} {}", response.status(), response.status_text());
            return Err(Error::Io { path: url.to_owned(), source: std::io::Error::other(status) });
        }
        let len = stated_length(&response);
        let body = response.body().ok_or_else(|| failed(url, &"the response has no body".into()))?;
        let stream = ReadableStreamDefaultReader::new(&body).map_err(fail)?;
        Ok(Some(Body { url: url.to_owned(), len, stream, pending: Uint8Array::new_with_length(0) }))
    }

    /// The file's length, where the response states it reliably.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Reads some bytes, at least one unless the body has ended.
    pub(crate) async fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        while self.pending.length() == 0 {
            let fail = |error: JsValue| failed(&self.url, &error);
            let step = JsFuture::from(self.stream.read()).await.map_err(fail)?;
            if Reflect::get(&step, &"done".into()).map_err(fail)?.is_truthy() {
                return Ok(0);
            }
            let value = Reflect::get(&step, &"value".into()).map_err(fail)?;
            self.pending = value.dyn_into().map_err(fail)?;
        }
        let length = self.pending.length();
        let count = length.min(u32::try_from(out.len()).unwrap_or(u32::MAX));
        self.pending.subarray(0, count).copy_to(&mut out[..count as usize]);
        self.pending = self.pending.subarray(count, length);
        Ok(count as usize)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A cancel that fails means that the download is over already.
        let cancelled = JsFuture::from(self.stream.cancel());
        wasm_bindgen_futures::spawn_local(async move {
            let _ = cancelled.await;
        });
    }
}

/// Says whether a response means that the host has no such file.
///
/// Object stores answer 403 for a missing file, and single-page hosts answer 200 with their front page.
fn is_absent(response: &Response) -> bool {
    let html = header(response, "content-type").is_some_and(|kind| kind.starts_with("text/html"));
    matches!(response.status(), 403 | 404 | 410) || (response.ok() && html)
}

/// `Content-Length`, unless the body may have been compressed on the way: then the header counts other bytes.
/// A cross-origin response hides `Content-Encoding`, so its length cannot be relied on either.
fn stated_length(response: &Response) -> Option<u64> {
    let kind = Reflect::get(response, &"type".into()).ok()?.as_string()?;
    if kind != "basic" || header(response, "content-encoding").is_some() {
        return None;
    }
    header(response, "content-length")?.parse().ok()
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).ok().flatten()
}

fn failed(url: &str, error: &JsValue) -> Error {
    let message = match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => error.as_string().unwrap_or_else(|| "the request failed".to_owned()),
    };
    Error::Io { path: url.to_owned(), source: std::io::Error::other(message) }
}
