//! Weights in and out: where files come from, safetensors headers, streaming, element types.
//!
//! Nothing here trusts a file. A length, count, offset or product that a file states is compared with the
//! bytes that exist before it is used, and no allocation is larger than the bytes that justify it.

mod checkpoint;
#[cfg(all(feature = "http", not(target_arch = "wasm32")))]
mod client;
mod dtype;
mod fields;
mod filling;
mod fingerprint;
#[cfg(not(target_arch = "wasm32"))]
mod folder;
mod given;
#[cfg(not(target_arch = "wasm32"))]
mod growing;
mod header;
#[cfg(target_arch = "wasm32")]
mod http;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
mod hub;
mod index;
mod json;
pub(crate) mod limits;
mod loss;
mod names;
mod pieces;
mod place;
mod quantize;
mod quantized;
mod reader;
mod request;
#[cfg(all(feature = "http", not(target_arch = "wasm32")))]
mod served;
mod source;
mod stand_in;
mod stream;
mod surplus;
#[cfg(not(target_arch = "wasm32"))]
mod target;
mod tensors;
#[cfg(all(test, not(target_arch = "wasm32")))]
pub(crate) mod testing;
mod upload;
#[cfg(not(target_arch = "wasm32"))]
mod versions;
#[cfg(not(target_arch = "wasm32"))]
mod write;

pub(crate) use checkpoint::Checkpoint;
pub(crate) use dtype::Dtype;
pub(crate) use fields::{Fields, shown};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use filling::pack_matrix;
pub(crate) use fingerprint::Fingerprint;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use folder::NewFolder;
pub use given::{ModelFiles, ReadAt};
#[cfg(not(target_arch = "wasm32"))]
pub use growing::GrowingFile;
pub(crate) use header::TensorInfo;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub use hub::{Hub, HubModel, HubRepo};
pub(crate) use loss::Loss;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use names::WEIGHTS_FILE;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
use names::check_name;
pub(crate) use pieces::{Piece, Pieces};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use place::Layout;
pub(crate) use place::Order;
use quantize::pack_counted;
pub use quantize::pack_rows;
pub(crate) use quantized::check_scales;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use quantized::{FIELD as QUANTIZATION_FIELD, VERSION as QUANTIZATION_VERSION, packed_plan};
use reader::Reader;
pub(crate) use request::{Form, Request, check_shapes};
pub use source::Source;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use stand_in::text as plain_text;
pub(crate) use stream::Chunk;
#[cfg(not(target_arch = "wasm32"))]
pub use target::{NewFile, remove_unfinished};
pub(crate) use tensors::Tensors;
pub(crate) use upload::Upload;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use write::{SafetensorsWriter, TensorData, TensorPlan, write_safetensors};

/// Text from a file, quoted, escaped and cut to a length fit for an error message.
pub(crate) fn quote(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
