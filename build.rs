//! Expands `//!include "shared/x.wgsl"` lines in `shaders/*.wgsl` and lists the result as Rust statics, with the bindings
//! that the text declares.
//!
//! That is all: no conditionals, no templates. Sizes are WGSL `override` constants, set when a pipeline is made. What a
//! shared file takes from the files that include it stands in its `//!needs` lines, `//!needs var params, fn finish`, and
//! is looked for in each of them.

use std::{env, error::Error, fmt::Write, fs, path::Path};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
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
    for file in names {
        let mut needs = Vec::new();
        let source = expand(&shaders, &file, &mut needs)?;
        check_needs(&source, &needs).map_err(|error| format!("shaders/{file}: {error}"))?;
        let path = out.join(&file);
        let bindings = bindings(&source).map_err(|error| format!("shaders/{file}: {error}"))?.join(", ");
        fs::write(&path, source)?;
        let name = file.trim_end_matches(".wgsl");
        let constant = name.replace('.', "_").to_uppercase();
        writeln!(
            table,
            "pub(crate) static {constant}: Shader = \
             Shader {{ name: {name:?}, source: include_str!({path:?}), bindings: &[{bindings}] }};"
        )?;
    }
    fs::write(out.join("mod.rs"), table)?;
    Ok(())
}

/// What a shared file takes from those that include it.
struct Need {
    /// The shared file.
    by: String,
    /// `var`, `const`, `fn` or `struct`.
    kind: String,
    name: String,
}

/// The text of a shader with its include lines replaced by the files they name.
fn expand(shaders: &Path, name: &str, needs: &mut Vec<Need>) -> Result<String> {
    let source = fs::read_to_string(shaders.join(name)).map_err(|e| format!("shaders/{name}: {e}"))?;
    let mut expanded = String::new();
    for line in source.lines() {
        if let Some(file) = line.strip_prefix("//!include ") {
            expanded += &expand(shaders, file.trim().trim_matches('"'), needs)?;
        } else if let Some(list) = line.strip_prefix("//!needs ") {
            for need in list.split(',') {
                let (kind, wanted) =
                    need.trim().split_once(' ').ok_or_else(|| format!("shaders/{name}: //!needs {need}"))?;
                needs.push(Need { by: name.into(), kind: kind.into(), name: wanted.into() });
            }
        } else {
            expanded += line;
            expanded.push('\n');
        }
    }
    Ok(expanded)
}

fn check_needs(source: &str, needs: &[Need]) -> Result<()> {
    for Need { by, kind, name } in needs {
        // How a line starts that declares it.
        let (starts, ends): (&[&str], &[char]) = match kind.as_str() {
            "var" => (&["var", "@group"], &[':']),
            "const" => (&["const ", "override "], &[':', '=', ' ']),
            "fn" => (&["fn "], &['(']),
            "struct" => (&["struct ", "alias "], &[' ', '{']),
            _ => return Err(format!("{by} needs {kind} {name}, expected a var, const, fn or struct").into()),
        };
        let declares = |line: &str| {
            let mut places =
                line.match_indices(name.as_str()).map(|(at, _)| (&line[..at], &line[at + name.len()..]));
            starts.iter().any(|start| line.starts_with(start))
                && places.any(|(before, after)| before.ends_with(' ') && after.starts_with(ends))
        };
        if !source.lines().any(declares) {
            return Err(format!("no {kind} {name}, which {by} needs").into());
        }
    }
    Ok(())
}

/// How each storage buffer is used, from binding 1.
fn bindings(source: &str) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for line in source.lines().filter(|line| line.starts_with("@group(0) @binding(")) {
        let access = match line {
            _ if line.contains("var<uniform>") => continue,
            _ if line.contains("var<storage, read_write>") => "Access::Write",
            _ if line.contains("var<storage, read>") => "Access::Read",
            _ => {
                return Err(format!("{line}: expected var<uniform>, var<storage, read> or read_write").into());
            }
        };
        let number = line.trim_start_matches("@group(0) @binding(").split(')').next().unwrap_or_default();
        found.push((number.parse::<usize>()?, access));
    }
    found.sort_unstable();
    match found.iter().map(|(number, _)| *number).eq(1..=found.len()) {
        true => Ok(found.into_iter().map(|(_, access)| access).collect()),
        false => Err(format!("bindings {found:?}, expected each from 1 on").into()),
    }
}
