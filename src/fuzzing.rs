//! What the property tests and the fuzz target call: every check of a model folder that needs no GPU.

#[cfg(feature = "chat")]
mod template;

#[cfg(feature = "chat")]
pub use template::check_template;

use crate::{
    Result,
    models::Blueprint,
    sessions::saved::check_any,
    weights::{Form, Loss, Source, check_scales},
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
    let (Blueprint { requests, .. }, checkpoint) = Blueprint::read(source).await?;
    let plain = requests.iter().flat_map(|request| &request.pieces);
    let plain = plain.filter_map(|piece| checkpoint.tensor(&piece.name)).filter(|tensor| !tensor.quantized);
    let packed: Vec<_> = requests
        .iter()
        .filter_map(|request| match request.form {
            Form::Matrix(shape, _) => Some((checkpoint.packed(&request.key())?, shape.inputs)),
            _ => None,
        })
        .collect();
    let wanted = plain.chain(packed.iter().map(|(tensor, _)| *tensor)).collect();
    let mut stream = checkpoint.stream(source, wanted);
    let mut narrow = Vec::new();
    while let Some(chunk) = stream.next().await? {
        let inputs = packed.iter().find(|(tensor, _)| tensor.name == chunk.tensor.name);
        if let (Some((_, inputs)), Some(precision)) = (inputs, checkpoint.quantization()) {
            check_scales(precision, *inputs, &chunk)?;
            continue;
        }
        chunk.to_f16(&mut narrow, &mut Loss::default())?;
    }
    Ok(())
}

/// Checks bytes that may be a saved sequence.
///
/// # Errors
/// What [`crate::Session::restore`] would report.
pub fn check_saved(saved: &[u8]) -> Result<()> {
    check_any(saved)
}

/// Reads a `tokenizer.json` that is in memory, and has it cut texts into tokens and make text of ids.
///
/// # Errors
/// What reading it or a text reports.
#[cfg(feature = "tokenizer")]
pub fn check_tokenizer(json: &[u8]) -> Result<()> {
    let tokenizer = crate::Tokenizer::parse("memory/tokenizer.json".to_owned(), json.to_vec())?;
    for text in
        ["", "a", " Hi  ok.\n", "na\u{ef}ve \u{1F980} [MASK] <s>\u{0}", &"aab ".repeat(64), &"a".repeat(2000)]
    {
        let ids = tokenizer.encode(text)?;
        tokenizer.pieces(text)?;
        tokenizer.decode(&ids)?;
    }
    let ids: Vec<u32> = (0..300).chain([u32::MAX]).collect();
    tokenizer.decode(&ids)?;
    Ok(())
}
