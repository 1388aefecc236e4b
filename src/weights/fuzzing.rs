//! What the property tests and the fuzz target call: every check that needs no GPU, on hostile input.

use super::{Checkpoint, Source, check_finite};
use crate::models::jetmoe_config::Config;
use crate::{Error, Result};

/// Checks a `model.safetensors` and a `config.json` that are in memory.
pub fn check_checkpoint(header_and_data: &[u8], config: &[u8]) -> Result<()> {
    check_source(&Source::memory(
        "memory",
        vec![
            ("model.safetensors".to_owned(), header_and_data.to_vec()),
            ("config.json".to_owned(), config.to_vec()),
        ],
    ))
}

/// Checks a model's config, headers, shapes and values.
pub fn check_source(source: &Source) -> Result<()> {
    pollster::block_on(check(source))
}

async fn check(source: &Source) -> Result<()> {
    const CONFIG: &str = "config.json";
    let config = source.read_small(CONFIG, Config::MAX_BYTES).await?.ok_or_else(|| source.absent(CONFIG))?;
    let config = Config::parse(&config, &source.path_of(CONFIG))?;
    let checkpoint = Checkpoint::open(source).await?;
    config.shapes(&checkpoint)?;
    let wanted: Vec<_> = checkpoint.tensors().collect();
    let mut left: u64 = wanted.iter().map(|t| t.bytes).sum();
    let mut stream = checkpoint.stream(source, wanted);
    let (mut wide, mut narrow) = (Vec::new(), Vec::new());
    while let Some(chunk) = stream.next().await? {
        chunk.to_f32(&mut wide);
        chunk.to_f16(&mut narrow)?;
        if chunk.tensor.name.ends_with("router.layer.weight") {
            check_finite(&chunk.tensor.name, chunk.file, &wide)?;
        }
        left = left.wrapping_sub(chunk.bytes.len() as u64);
    }
    match left {
        0 => Ok(()),
        n => Err(Error::bad_file(source.path_of(""), "weights", "some", format!("{n} bytes more"))),
    }
}
