//! `--model owner/name[@revision]`

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use headwise::{Error, Gpu, Hub, HubRepo, Model, Precision, Source};

use super::{bytes, progress};

/// The repository that `--model` names, unless there is a file or folder of that name.
pub fn repository(model: &Path) -> Result<Option<HubRepo>, Error> {
    match model.to_str() {
        Some(text) if !model.exists() => match text.parse() {
            Err(error) if HubRepo::is_address(text) => Err(error),
            found => Ok(found.ok()),
        },
        _ => Ok(None),
    }
}

/// The model without its weights.
pub fn preview(repository: &HubRepo) -> Result<Source, Error> {
    let hub = Hub::from_env()?;
    let model = hub.look(repository).map_err(not_a_folder)?;
    Ok(model.preview())
}

/// The model's folder, once the model is known to fit and its weights are here.
pub fn fetch(
    repository: &HubRepo,
    gpu: &Gpu,
    precision: Option<Precision>,
    quiet: bool,
) -> Result<Source, Error> {
    let hub = Hub::from_env()?;
    let model = hub.look(repository).map_err(not_a_folder)?;
    if model.missing_bytes() > 0 {
        let info = headwise::block_on(Model::check(&model.preview()))?;
        let precision = precision.unwrap_or(info.default_precision);
        let need = info.weight_bytes(precision);
        gpu.plan(&format!("the model {repository}"), need)?;
        if !quiet {
            let have = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), bytes::show);
            // Losing a remark is no reason to fail.
            let _ = writeln!(
                io::stderr(),
                "{repository}: {} to download into {}, free {}; {} on the GPU as {}, free {}",
                bytes::show(model.missing_bytes()),
                model.cache().display(),
                have(model.disk_bytes()),
                bytes::show(need),
                format!("{precision:?}").to_lowercase(),
                have(gpu.memory_left()),
            );
        }
    }
    Ok(Source::folder(model.download(progress::bar_of("fetching", quiet))?))
}

/// The folder that models are kept in, where the environment says which.
pub fn cache() -> Option<PathBuf> {
    Hub::from_env().ok().map(|hub| hub.cache().to_owned())
}

/// A name on a hub may have been meant for a folder.
fn not_a_folder(error: Error) -> Error {
    match error {
        Error::Hub { hub, repo, file, status: status @ (None | Some(401 | 404)), message } => {
            let message = format!("{message}; nor is there a folder {repo}");
            Error::Hub { hub, repo, file, status, message }
        }
        error => error,
    }
}
