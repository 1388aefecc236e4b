//! Expands `//!include "shared/x.wgsl"` lines in `shaders/*.wgsl` and lists the result as Rust constants.
//!
//! That is all: no conditionals, no templates. Sizes are WGSL `override` constants, set when a pipeline is made.

use std::{env, error::Error, fmt::Write, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = env::var("CARGO_MANIFEST_DIR")?;
    let shaders = Path::new(&root).join("shaders");
    let out = Path::new(&env::var("OUT_DIR")?).join("shaders");
    // From scratch, so that a deleted shader does not linger for the tests that read this folder.
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out)?;
    println!("cargo::rerun-if-changed=shaders");

    let mut names: Vec<String> = fs::read_dir(&shaders)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".wgsl"))
        .collect();
    names.sort();

    let mut table = String::new();
    for name in names {
        let source = expand(&shaders, &name)?;
        let path = out.join(&name);
        fs::write(&path, source)?;
        let constant = name.trim_end_matches(".wgsl").replace('.', "_").to_uppercase();
        writeln!(table, "pub(crate) const {constant}: &str = include_str!({path:?});")?;
    }
    fs::write(out.join("mod.rs"), table)?;
    Ok(())
}

/// The text of a shader with its include lines replaced by the files they name.
fn expand(shaders: &Path, name: &str) -> Result<String, Box<dyn Error>> {
    let source = fs::read_to_string(shaders.join(name)).map_err(|e| format!("shaders/{name}: {e}"))?;
    let mut expanded = String::new();
    for line in source.lines() {
        match line.strip_prefix("//!include ") {
            Some(file) => expanded += &expand(shaders, file.trim().trim_matches('"'))?,
            None => {
                expanded += line;
                expanded.push('\n');
            }
        }
    }
    Ok(expanded)
}
