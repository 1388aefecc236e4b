//! A picture of the window, as PNG.

use std::{fs::File, io::BufWriter, path::Path};

use eframe::egui::ColorImage;

/// Writes `image` into `file`.
pub fn save(image: &ColorImage, file: &Path) -> Result<(), String> {
    let write = || -> Result<(), png::EncodingError> {
        let [width, height] = image.size.map(|n| n as u32);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(file)?), width, height);
        encoder.set_color(png::ColorType::Rgba);
        encoder.write_header()?.write_image_data(image.as_raw())
    };
    write().map_err(|error| error.to_string())
}
