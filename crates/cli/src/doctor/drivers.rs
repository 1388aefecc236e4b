//! What a Vulkan loader finds on Linux: itself, manifests of drivers and their libraries, OpenGL's, and the devices of the kernel.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Nothing of it is looked for on other systems.
#[derive(Default, Serialize)]
pub struct Drivers {
    /// The Vulkan loader and EGL: the file found, or nothing.
    libraries: Vec<(&'static str, Option<String>)>,
    manifests: Vec<Manifest>,
    /// Devices of GPUs, and whether this user may open them.
    devices: Vec<(String, bool)>,
}

/// A driver's manifest.
#[derive(Serialize)]
struct Manifest {
    file: String,
    /// What it names, or why it cannot be read.
    library: Result<String, String>,
    /// Whether that is there.
    found: bool,
}

impl Drivers {
    pub fn find() -> Self {
        if !cfg!(target_os = "linux") {
            return Self::default();
        }
        let library = |name: &'static str| (name, library(name).map(|path| path.display().to_string()));
        Self {
            libraries: ["libvulkan.so.1", "libEGL.so.1"].map(library).to_vec(),
            manifests: manifests().iter().map(|file| Manifest::read(file)).collect(),
            devices: devices(),
        }
    }

    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let library = |(name, found): &(&str, Option<String>)| {
            ("library", format!("{name}: {}", found.as_deref().unwrap_or("NOT FOUND")))
        };
        let device = |(name, open): &(String, bool)| {
            ("device", format!("{name}{}", if *open { "" } else { ": MAY NOT BE OPENED" }))
        };
        let mut rows: Vec<_> = self.libraries.iter().map(library).collect();
        rows.extend(self.manifests.iter().map(|manifest| ("driver", manifest.describe())));
        rows.extend(self.devices.iter().map(device));
        rows
    }

    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let missing = |(name, found): &&(&str, Option<String>)| *name == "libvulkan.so.1" && found.is_none();
        if self.libraries.iter().any(|library| missing(&library)) {
            advice.push(
                "the Vulkan loader is missing: install libvulkan1 (Debian, Ubuntu) or vulkan-loader".into(),
            );
        }
        if self.libraries.iter().any(|_| self.manifests.is_empty()) {
            advice.push(
                "no Vulkan driver has a manifest in the usual folders, nor does VK_DRIVER_FILES name one"
                    .into(),
            );
        }
        for Manifest { file, library, .. } in self.manifests.iter().filter(|manifest| !manifest.found) {
            advice.push(match library {
                Ok(library) => format!("{file} names {library}, which is missing: its driver cannot load"),
                Err(why) => format!("{file}: {why}"),
            });
        }
        let closed = self.devices.iter().filter(|(_, open)| !open);
        advice.extend(closed.map(|(name, _)| {
            format!("{name} may not be opened: join the group that owns it (render, video)")
        }));
        advice
    }
}

impl Manifest {
    fn read(file: &Path) -> Self {
        let library = fs::read(file).map_err(|error| error.to_string()).and_then(|text| {
            let json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
            let path = json["ICD"]["library_path"].as_str();
            path.map(str::to_owned).ok_or_else(|| "no ICD.library_path".to_owned())
        });
        let found = library.as_ref().is_ok_and(|name| match name.contains('/') {
            // An absolute one stays as it is.
            true => file.parent().is_some_and(|folder| folder.join(name).exists()),
            false => self::library(name).is_some(),
        });
        Self { file: file.display().to_string(), library, found }
    }

    fn describe(&self) -> String {
        let found = if self.found { "" } else { ": NOT FOUND" };
        match &self.library {
            Ok(library) => format!("{}, {library}{found}", self.file),
            Err(why) => format!("{}: {why}", self.file),
        }
    }
}

/// A variable's folders or files.
fn paths(name: &str) -> Vec<PathBuf> {
    env::var_os(name).map(|value| env::split_paths(&value).collect()).unwrap_or_default()
}

/// The manifests that the loader reads: those that the environment names, else those of the usual folders.
fn manifests() -> Vec<PathBuf> {
    let named = [paths("VK_DRIVER_FILES"), paths("VK_ICD_FILENAMES")];
    if let Some(named) = named.into_iter().find(|paths| !paths.is_empty()) {
        return named
            .iter()
            .flat_map(|path| if path.is_dir() { files_in(path) } else { vec![path.clone()] })
            .collect();
    }
    let home = env::home_dir();
    let own = |variable: &str, usual: &str| {
        let set = paths(variable);
        if set.is_empty() { home.iter().map(|home| home.join(usual)).collect() } else { set }
    };
    let or = |set: Vec<PathBuf>, usual: &[&str]| {
        if set.is_empty() { usual.iter().map(PathBuf::from).collect() } else { set }
    };
    let roots = [
        paths("VK_ADD_DRIVER_FILES"),
        own("XDG_CONFIG_HOME", ".config"),
        or(paths("XDG_CONFIG_DIRS"), &["/etc/xdg"]),
        vec!["/usr/local/etc".into(), "/etc".into()],
        own("XDG_DATA_HOME", ".local/share"),
        or(paths("XDG_DATA_DIRS"), &["/usr/local/share", "/usr/share"]),
    ];
    let mut all = Vec::new();
    for root in roots.concat() {
        let found = if root.is_file() { vec![root] } else { files_in(&root.join("vulkan/icd.d")) };
        all.extend(found.into_iter().filter(|file| !all.contains(file)).collect::<Vec<_>>());
    }
    all
}

/// The manifests in a folder, by name.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    files.sort();
    files
}

/// Where the dynamic linker would find a library, as far as folders tell.
fn library(name: &str) -> Option<PathBuf> {
    let triple = format!("{}-linux-gnu", env::consts::ARCH);
    let usual = ["/usr/local/lib", "/lib", "/usr/lib", "/lib64", "/usr/lib64"].map(PathBuf::from);
    let of_triple = ["/lib", "/usr/lib", "/usr/local/lib"].map(|folder| Path::new(folder).join(&triple));
    let folders = [paths("LD_LIBRARY_PATH"), of_triple.to_vec(), usual.to_vec()].concat();
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists())
}

/// Render nodes and NVIDIA's, and whether they may be opened for reading and writing.
fn devices() -> Vec<(String, bool)> {
    let in_folder = |folder: &str, start: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with(start))
            .map(|name| format!("{folder}/{name}"))
            .collect::<Vec<_>>()
    };
    let mut names = [in_folder("/dev/dri", "renderD"), in_folder("/dev", "nvidia")].concat();
    // Folders such as /dev/nvidia-caps are no devices.
    names.retain(|name| !Path::new(name).is_dir());
    names.sort();
    let open = |name: &String| fs::OpenOptions::new().read(true).write(true).open(name).is_ok();
    names.into_iter().map(|name| (open(&name), name)).map(|(open, name)| (name, open)).collect()
}
