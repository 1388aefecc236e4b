//! What a classifier of images sees and what it can say.

use crate::{Result, weights::Fields};

/// The longest side of an image, in pixels.
const MOST_PIXELS: usize = 1 << 14;

/// What a classifier sees and what it can say.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    pub labels: Vec<String>,
    /// Pixels of an image's side and of a patch's.
    pub image_size: u32,
    pub patch_size: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Of each channel; a pixel becomes `(byte / 255 − mean) / std`.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Classes {
    /// Reads transformers' names for all of it.
    ///
    /// # Errors
    /// When a field is missing or absurd, or patches do not fill an image.
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
        let (image_size, patch_size) = (size("image_size", MOST_PIXELS)?, size("patch_size", MOST_PIXELS)?);
        if !image_size.is_multiple_of(patch_size) {
            let expected = format!("a multiple of patch_size, {patch_size}");
            return Err(fields.bad("image_size", image_size, expected));
        }
        let channels = size("num_channels", 4)?;
        if channels != 1 && channels != 3 {
            return Err(fields.bad("num_channels", channels, "1 (grey) or 3 (red, green, blue)"));
        }
        let numbers = |name, range| fields.numbers(name, channels as usize, range);
        Ok(Self {
            labels: fields.labels("id2label")?,
            image_size,
            patch_size,
            channels,
            mean: numbers("image_mean", -1e3..=1e3)?,
            std: numbers("image_std", 1e-6..=1e3)?,
        })
    }

    /// Patches of an image.
    pub fn patches(&self) -> u32 {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Values of a patch.
    pub fn patch_values(&self) -> u32 {
        self.channels * self.patch_size * self.patch_size
    }
}
