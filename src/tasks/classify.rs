//! Image classification: pixels in, labels out.

use serde::Serialize;

use super::Model;
use crate::{
    Error, Result,
    models::{Classes, Task},
    ops::{MAX_TOP_LOGITS, padded},
    probes::{Observe, Trace},
    sessions::{Session, SessionOptions, TokenRoutes},
};

/// An image: rows of pixels, each one byte (grey) or three (red, green, blue).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    /// `[height, width, channels]`
    pixels: Vec<u8>,
}

/// A class that an image may belong to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Class {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub label: String,
    /// How likely it is.
    pub probability: f32,
}

/// What a model says of one image.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Classification {
    /// The likeliest first.
    pub classes: Vec<Class>,
    /// The experts that each token chose: the class token, then the patches row by row.
    #[serde(skip)]
    pub routes: Vec<TokenRoutes>,
}

impl Image {
    /// From `pixels` `[height, width, channels]`, 1 channel (grey) or 3 (red, green, blue).
    ///
    /// # Errors
    /// When the bytes are not as many as the sizes say, or there are none.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        if channels != 1 && channels != 3 {
            return Err(Error::argument("image channels", channels, "1 (grey) or 3 (red, green, blue)"));
        }
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if pixels.is_empty() || bytes != Some(pixels.len()) {
            let expected = format!("{width} × {height} × {channels}, at least one");
            return Err(Error::argument("image bytes", pixels.len(), expected));
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// One channel of a pixel, 0 to 255, of `of` channels: grey is the same in all, and colours become grey by their
    /// luminance (ITU-R BT.601).
    fn value(&self, x: usize, y: usize, channel: usize, of: usize) -> f32 {
        let at = (y * self.width + x) * self.channels;
        let pixel = &self.pixels[at..at + self.channels];
        match (pixel, of) {
            ([grey], _) => f32::from(*grey),
            ([r, g, b], 1) => 0.299 * f32::from(*r) + 0.587 * f32::from(*g) + 0.114 * f32::from(*b),
            (pixel, _) => f32::from(pixel[channel]),
        }
    }

    /// One channel of pixel (x, y) when the image is scaled to `side` × `side`: the mean over the area that the pixel
    /// covers, which is the pixel itself where sizes are equal.
    fn scaled(&self, x: usize, y: usize, side: usize, channel: usize, of: usize) -> f32 {
        let range = |i: usize, n: usize| {
            let start = i * n / side;
            start..((i + 1) * n).div_ceil(side).clamp(start + 1, n)
        };
        let (mut sum, mut count) = (0f64, 0f64);
        for y in range(y, self.height) {
            for x in range(x, self.width) {
                sum += f64::from(self.value(x, y, channel, of));
                count += 1.0;
            }
        }
        (sum / count) as f32
    }

    /// The rows of an image's tokens, `[1 + patches, values]`, padded: nothing for the class token, then the patches row
    /// by row, each `[channels, patch, patch]`, with pixels `(byte / 255 − mean) / std`.
    fn patches(&self, classes: &Classes, into: &mut Vec<f32>) {
        let (side, patch) = (classes.image_size as usize, classes.patch_size as usize);
        let channels = classes.channels as usize;
        let row = padded((channels * patch * patch) as u32) as usize;
        into.extend(std::iter::repeat_n(0.0, row));
        for top in (0..side).step_by(patch) {
            for left in (0..side).step_by(patch) {
                let end = into.len() + row;
                for channel in 0..channels {
                    let (mean, std) = (classes.mean[channel], classes.std[channel]);
                    for y in top..top + patch {
                        for x in left..left + patch {
                            let byte = self.scaled(x, y, side, channel, channels);
                            into.push((byte / 255.0 - mean) / std);
                        }
                    }
                }
                into.resize(end, 0.0);
            }
        }
    }
}

/// Tokens of one step.
const BATCH_TOKENS: usize = 2048;

impl Model {
    /// The `top` likeliest classes of each image. Images of another size than the model's are scaled; those
    /// that [`Cancel`](crate::Cancel) leaves out have no classes.
    ///
    /// # Errors
    /// A model that does not classify images, no images, `top` outside 1 to 16 or the number of classes, and what the GPU
    /// reports.
    pub async fn classify(&self, images: &[Image], top: usize) -> Result<Vec<Classification>> {
        let Task::Classify(classes) = &self.task else { return Err(self.wrong_task("classify")) };
        let most = MAX_TOP_LOGITS.min(classes.labels.len() as u32) as usize;
        if !(1..=most).contains(&top) {
            return Err(Error::argument("top", top, format!("1 to {most}")));
        }
        if images.is_empty() {
            return Err(Error::argument("images", "none", "at least one"));
        }
        let (count, each) = (images.len(), 1 + classes.patches());
        let batch = (BATCH_TOKENS / each as usize).max(1);
        let mut results = Vec::with_capacity(images.len());
        for images in images.chunks(batch) {
            let mut session = self.session_of_images(classes, images.len())?;
            read_images(&mut session, classes, images)?;
            let (tops, routes) = match session.read_top(top as u32).await {
                Err(Error::Cancelled) => break,
                read => read?,
            };
            for (image, top) in (0..).zip(tops) {
                let first = image * each as usize;
                let named = top.into_iter().map(|(id, log)| Class {
                    id,
                    label: classes.labels.get(id as usize).cloned().unwrap_or_default(),
                    probability: log.exp(),
                });
                results.push(Classification {
                    classes: named.collect(),
                    routes: (first..first + each as usize).map(|token| routes.token(token)).collect(),
                });
            }
        }
        let missed = || Classification { classes: Vec::new(), routes: Vec::new() };
        results.resize_with(count, missed);
        Ok(results)
    }

    /// A session that reads so many images in one step.
    fn session_of_images(&self, classes: &Classes, count: usize) -> Result<Session> {
        let (count, each) = (count as u32, 1 + classes.patches());
        let layout =
            SessionOptions::new().sequences(count).positions(each).reserve(each).step_tokens(count * each);
        self.any_session(layout)
    }

    /// As [`Model::trace`], of images: the class token stands at position 0 of each, then its patches row by row.
    ///
    /// # Errors
    /// As [`Model::trace`], a model that does not classify images, and no images.
    pub async fn trace_images(&self, images: &[Image], observe: &Observe) -> Result<Trace> {
        let Task::Classify(classes) = &self.task else { return Err(self.wrong_task("classify")) };
        if images.is_empty() {
            return Err(Error::argument("images", "none", "at least one"));
        }
        let mut session = self.session_of_images(classes, images.len())?;
        session.set_observe(Some(observe))?;
        read_images(&mut session, classes, images)?;
        session.observed().await
    }

    /// Patches of a side of the images that the model looks at.
    ///
    /// # Errors
    /// A model that does not classify images.
    pub fn image_grid(&self) -> Result<u32> {
        let Task::Classify(classes) = &self.task else { return Err(self.wrong_task("classify")) };
        Ok(classes.image_size / classes.patch_size)
    }
}

/// Records a step over all images.
fn read_images(session: &mut Session, classes: &Classes, images: &[Image]) -> Result<()> {
    let mut patches = Vec::new();
    images.iter().for_each(|image| image.patches(classes, &mut patches));
    session.forward_images(images.len() as u32, 1 + classes.patches(), &patches)
}
