//! Image files: PNG, and PGM and PPM in their binary forms.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use headwise::{Error, Image};
use png::{ColorType, Decoder, Transformations};

/// The most pixels that an image may have.
const MAX_PIXELS: u64 = 64 << 20;

/// Reads an image. Transparency becomes black; `invert` turns the colours around before that.
pub fn read(path: &Path, invert: bool) -> Result<Image, Error> {
    let file = path.display().to_string();
    let fail = |source| Error::Io { path: file.clone(), source };
    let mut reader = BufReader::new(File::open(path).map_err(fail)?);
    let start = reader.fill_buf().map_err(fail)?;
    let pixels = match start {
        [b'P', b'5' | b'6', ..] => read_pnm(&mut reader),
        [0x89, b'P', b'N', b'G', ..] => read_png(&mut reader),
        _ => Err(Wrong::new("content", "something else", "a PNG, PGM (P5) or PPM (P6) file")),
    };
    let Pixels { width, height, channels, alpha, mut bytes } = pixels.map_err(|wrong| wrong.of(&file))?;
    if invert {
        let is_alpha = |at: usize| alpha && at % channels == channels - 1;
        bytes.iter_mut().enumerate().filter(|(at, _)| !is_alpha(*at)).for_each(|(_, byte)| *byte = !*byte);
    }
    if alpha {
        bytes = on_black(&bytes, channels);
    }
    Image::new(width, height, channels - usize::from(alpha), bytes)
}

/// An image as a file has it; `alpha` is the last of its channels.
struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    alpha: bool,
    bytes: Vec<u8>,
}

/// What is wrong with a file.
struct Wrong {
    field: &'static str,
    found: String,
    expected: &'static str,
}

impl Wrong {
    fn new(field: &'static str, found: impl ToString, expected: &'static str) -> Self {
        Self { field, found: found.to_string(), expected }
    }

    fn of(self, file: &str) -> Error {
        let Self { field, found, expected } = self;
        Error::BadFile {
            file: file.to_owned(),
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        }
    }
}

/// Refuses sizes before anything is allocated for them.
fn check_size(width: u64, height: u64) -> Result<(), Wrong> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(Wrong::new("size", format!("{width} × {height}"), "1 to 67,108,864 pixels")),
    }
}

fn on_black(bytes: &[u8], channels: usize) -> Vec<u8> {
    let pixels = bytes.chunks_exact(channels);
    pixels
        .flat_map(|pixel| {
            let (&alpha, colours) = pixel.split_last().unwrap_or((&0, &[]));
            colours.iter().map(move |&value| ((u32::from(value) * u32::from(alpha) + 127) / 255) as u8)
        })
        .collect()
}

/// Palettes become colours, and other depths eight bits.
fn read_png(reader: &mut BufReader<File>) -> Result<Pixels, Wrong> {
    let wrong = |error: png::DecodingError| Wrong::new("content", error, "a whole PNG file");
    let mut decoder = Decoder::new(reader);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let header = decoder.read_header_info().map_err(wrong)?;
    check_size(header.width.into(), header.height.into())?;
    let mut reader = decoder.read_info().map_err(wrong)?;
    let size = reader.output_buffer_size().ok_or_else(|| Wrong::new("size", "too many bytes", "fewer"))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(wrong)?;
    bytes.truncate(frame.buffer_size());
    let (channels, alpha) = match frame.color_type {
        ColorType::Grayscale | ColorType::Indexed => (1, false),
        ColorType::GrayscaleAlpha => (2, true),
        ColorType::Rgb => (3, false),
        ColorType::Rgba => (4, true),
    };
    Ok(Pixels { width: frame.width as usize, height: frame.height as usize, channels, alpha, bytes })
}

/// `P5` or `P6`, width, height, largest value, one white space, then the values; `#` begins a comment.
fn read_pnm(reader: &mut impl BufRead) -> Result<Pixels, Wrong> {
    let mut magic = [0; 2];
    reader.read_exact(&mut magic).map_err(|error| Wrong::new("content", error, "P5 or P6"))?;
    let channels = if magic[1] == b'6' { 3 } else { 1 };
    let mut number = |field, expected| {
        let mut digits = String::new();
        let mut comment = false;
        for byte in reader.by_ref().bytes() {
            let byte = byte.map_err(|error| Wrong::new(field, error, expected))?;
            comment = (comment || byte == b'#') && byte != b'\n';
            match byte {
                b'0'..=b'9' if !comment && digits.len() < 9 => digits.push(byte.into()),
                _ if comment && digits.is_empty() => {}
                _ if byte.is_ascii_whitespace() && digits.is_empty() => {}
                _ if byte.is_ascii_whitespace() => break,
                _ => return Err(Wrong::new(field, format!("byte {byte}"), expected)),
            }
        }
        digits.parse::<u32>().map_err(|_| Wrong::new(field, "nothing", expected))
    };
    let (width, height) = (number("width", "a number")?, number("height", "a number")?);
    let most = number("largest value", "1 to 255")?;
    check_size(width.into(), height.into())?;
    if !(1..=255).contains(&most) {
        return Err(Wrong::new("largest value", most, "1 to 255"));
    }
    let need = u64::from(width) * u64::from(height) * channels;
    let mut bytes = Vec::new();
    let read = reader.take(need).read_to_end(&mut bytes);
    if read.is_err() || bytes.len() as u64 != need {
        return Err(Wrong::new("pixels", format!("{} bytes", bytes.len()), "as many as its size says"));
    }
    if most < 255 {
        bytes.iter_mut().for_each(|byte| *byte = (u32::from(*byte).min(most) * 255 / most) as u8);
    }
    let (width, height, channels) = (width as usize, height as usize, channels as usize);
    Ok(Pixels { width, height, channels, alpha: false, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A small PNG of each kind of colour.
    fn pngs() -> Vec<Vec<u8>> {
        let kinds = [
            (ColorType::Grayscale, png::BitDepth::One, 5),
            (ColorType::Grayscale, png::BitDepth::Sixteen, 70),
            (ColorType::Indexed, png::BitDepth::Four, 15),
            (ColorType::GrayscaleAlpha, png::BitDepth::Eight, 70),
            (ColorType::Rgba, png::BitDepth::Eight, 140),
        ];
        let write = |(color, depth, bytes): (ColorType, png::BitDepth, usize)| {
            let mut file = Vec::new();
            let mut encoder = png::Encoder::new(&mut file, 7, 5);
            encoder.set_color(color);
            encoder.set_depth(depth);
            if color == ColorType::Indexed {
                encoder.set_palette((0..48).collect::<Vec<u8>>());
            }
            let data: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
            let data = if color == ColorType::Indexed { vec![0x12; 20] } else { data };
            encoder.write_header().unwrap().write_image_data(&data).unwrap();
            file
        };
        kinds.map(write).into()
    }

    /// Whatever a file holds is an image or an error that names the file.
    #[test]
    fn any_bytes_are_an_image_or_an_error() {
        let path = std::env::temp_dir().join(format!("headwise-image-{}", std::process::id()));
        let (mut tried, mut good) = (0, 0);
        let mut attempt = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            tried += 1;
            match read(&path, tried % 2 == 0) {
                Ok(_) => good += 1,
                Err(error) => assert!(error.to_string().contains("headwise-image-"), "{error}"),
            }
        };
        let whole = pngs();
        whole.iter().for_each(|png| attempt(png));
        for png in &whole {
            for at in 0..png.len() {
                attempt(&png[..at]);
                for value in [0, 1, 127, 255] {
                    let mut bytes = png.clone();
                    bytes[at] = value;
                    attempt(&bytes);
                }
            }
        }
        for header in
            ["1 1", "0 1", "1 0", "99999999 99999999", "3", "3 x", "-1 1", "3 2 #", "1234567890 1", ""]
        {
            for most in ["255", "0", "256", "7", ""] {
                for data in ["", "a", "abcdefghijklmnopqrstuvwxyz"] {
                    for magic in ["P5", "P6", "P7", "P"] {
                        attempt(format!("{magic} # note\n{header}\n{most}\n{data}").as_bytes());
                    }
                }
            }
        }
        let _ = fs::remove_file(&path);
        println!("{tried} images, {good} of them good");
        assert!(good >= whole.len() && tried > 2000, "{good} of {tried}");
    }
}
