//! How much host memory loading takes beyond the model itself.
//!
//! `scripts/measure-loading` writes a large checkpoint and runs this on it. On a software adapter the device's
//! buffers are host memory too, so the device's own account is subtracted from the process's peak.

use std::time::Instant;

use headwise::{Gpu, GpuOptions, LoadOptions, Model, Source, block_on};

/// A line of /proc/self/status in bytes.
fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: measure_loading MODEL_FOLDER")?;
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let before = status("VmRSS").ok_or("this needs /proc/self/status")?;

    let start = Instant::now();
    let model = block_on(Model::load(&gpu, &Source::folder(folder), LoadOptions::new()))?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = status("VmHWM").ok_or("this needs /proc/self/status")?;

    let device = gpu.device().generate_allocator_report().map_or(0, |report| report.total_allocated_bytes);
    let weights = model.info().weight_bytes(model.precision());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("adapter                     {}", gpu.capabilities().name);
    println!("weights on the device       {:8.1} MiB in {seconds:.1} s", mib(weights));
    println!("device's own allocations    {:8.1} MiB", mib(device));
    println!("process before loading      {:8.1} MiB", mib(before));
    println!("process at its peak         {:8.1} MiB", mib(peak));
    let beyond = peak.saturating_sub(device);
    println!("peak beyond the device      {:8.1} MiB (limit 128)", mib(beyond));
    if beyond > 128 << 20 {
        return Err("loading took more than 128 MiB beyond the device's own memory".into());
    }
    Ok(())
}
