//! What the property tests and the fuzz target call: every check of a model folder that needs no GPU.

use crate::{
    Result,
    models::Blueprint,
    weights::{Source, check_finite},
};

/// Checks a `model.safetensors` and a `config.json` that are in memory.
///
/// # Errors
/// Whatever loading them would report before it reaches the GPU.
pub fn check_checkpoint(weights: &[u8], config: &[u8]) -> Result<()> {
    let files = [("model.safetensors", weights), ("config.json", config)];
    let files = files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).to_vec();
    check_source(&Source::memory("memory", files))
}

/// Checks a model's config, headers, shapes and values.
///
/// # Errors
/// As [`check_checkpoint`].
pub fn check_source(source: &Source) -> Result<()> {
    pollster::block_on(check(source))
}

async fn check(source: &Source) -> Result<()> {
    let (Blueprint { spec, names, .. }, checkpoint) = Blueprint::read(source).await?;
    let requests = spec.requests(&names);
    let is_router = |name: &str| {
        requests.iter().any(|request| request.finite && request.pieces.iter().any(|piece| piece.name == name))
    };
    let wanted = requests
        .iter()
        .flat_map(|request| &request.pieces)
        .filter_map(|piece| checkpoint.tensor(&piece.name))
        .collect();
    let mut stream = checkpoint.stream(source, wanted);
    let (mut wide, mut narrow) = (Vec::new(), Vec::new());
    while let Some(chunk) = stream.next().await? {
        chunk.to_f32(&mut wide);
        chunk.to_f16(&mut narrow)?;
        if is_router(&chunk.tensor.name) {
            check_finite(&chunk.tensor.name, chunk.file, &wide)?;
        }
    }
    Ok(())
}
