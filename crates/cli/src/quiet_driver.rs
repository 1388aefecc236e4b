//! Keeps a driver from printing on stderr, where a user looks for our one message.

/// Mesa's device selection layer looks for a Wayland desktop whenever a GPU is opened. Without one (containers,
/// servers, CI) libwayland prints "error: XDG_RUNTIME_DIR is invalid or not set in the environment". The layer
/// has a switch in the environment, which a process cannot safely change for itself: so begin again with it on.
/// What the layer does, sorting GPUs by the desktop they drive, means nothing there.
#[cfg(target_os = "linux")]
pub fn hush() {
    use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

    const OFF: &str = "NODEVICE_SELECT";
    let desktop = env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| Path::new(&folder).is_dir());
    let wanted = env::var_os("MESA_VK_DEVICE_SELECT").is_some();
    if desktop || wanted || env::var_os(OFF).is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // Returns only if it failed, and then there is merely some noise.
        let _ = Command::new(program).args(env::args_os().skip(1)).env(OFF, "1").exec();
    }
}

/// Nothing to hush elsewhere.
#[cfg(not(target_os = "linux"))]
pub fn hush() {}
