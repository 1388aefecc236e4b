//! A window that draws and a model that writes on one device: each token has the colour of the head that weighs most in the chosen
//! layer, as it comes.
//!
//! `cargo run --release --manifest-path examples/window/Cargo.toml -- "The king shall"`
//!
//! With `--screenshot FILE.png` it writes the text, saves the picture and ends: what CI looks at.

mod app;
mod colours;
mod picture;
mod writer;

use std::path::PathBuf;

use app::App;
use eframe::{
    NativeOptions,
    egui_wgpu::{WgpuConfiguration, WgpuSetup, WgpuSetupCreateNew},
    wgpu,
};
use headwise::Gpu;

/// The device that the window opens also has what headwise makes use of.
fn options() -> NativeOptions {
    let mut setup = WgpuSetupCreateNew::without_display_handle();
    setup.device_descriptor = std::sync::Arc::new(|adapter| wgpu::DeviceDescriptor {
        label: Some("window"),
        required_features: wgpu::Features::empty() | Gpu::wanted_features(adapter),
        required_limits: Gpu::wanted_limits(adapter, wgpu::Limits::default()),
        ..Default::default()
    });
    let wgpu_options = WgpuConfiguration { wgpu_setup: WgpuSetup::CreateNew(setup), ..Default::default() };
    NativeOptions { wgpu_options, ..Default::default() }
}

fn main() -> eframe::Result {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let at = args.iter().position(|arg| arg == "--screenshot");
    let screenshot = at.map(|at| args.drain(at..(at + 2).min(args.len())).nth(1).map(PathBuf::from));
    let Some(screenshot) = screenshot.map_or(Some(None), |file| file.map(Some)) else {
        eprintln!("--screenshot: found nothing, expected a file to write");
        std::process::exit(2);
    };
    let prompt = args.pop().unwrap_or_else(|| "It is a truth universally acknowledged, that".to_owned());
    let app = move |context: &eframe::CreationContext<'_>| App::new(context, prompt, screenshot);
    eframe::run_native("headwise", options(), Box::new(|context| Ok(Box::new(app(context)?))))
}
