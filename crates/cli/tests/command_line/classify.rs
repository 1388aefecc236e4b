//! `headwise classify`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use png::{BitDepth, ColorType, Encoder};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::*;

const SIDE: usize = 28;

/// The pixels and logits of the reference's images.
fn reference() -> Vec<(Vec<u8>, Vec<f64>)> {
    let bytes = fs::read(format!("{CLASSIFIER}/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let logits = floats(&reference.tensor("logits").unwrap());
    let images = reference.tensor("images").unwrap();
    let images = images.data().chunks(SIDE * SIDE).map(<[u8]>::to_vec);
    images.zip(logits.chunks(10).map(<[f64]>::to_vec)).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

/// The probabilities of all classes in each file's report, by the number of the class.
fn probabilities(files: &[PathBuf], options: &[&str]) -> Vec<Vec<f64>> {
    let files = files.iter().map(|file| file.to_str().unwrap());
    let args: Vec<&str> = ["classify", "--json", "--top", "10"].into_iter().chain(files).collect();
    let report = json(&[&args, options].concat());
    let of_image = |image: &Value| {
        let mut found = vec![f64::NAN; 10];
        for class in image["classes"].as_array().unwrap() {
            found[class["id"].as_u64().unwrap() as usize] = class["probability"].as_f64().unwrap();
        }
        found
    };
    report.as_array().unwrap().iter().map(of_image).collect()
}

fn write_png(path: &Path, colours: ColorType, depth: BitDepth, data: &[u8], palette: Option<Vec<u8>>) {
    let mut encoder = Encoder::new(File::create(path).unwrap(), SIDE as u32, SIDE as u32);
    encoder.set_color(colours);
    encoder.set_depth(depth);
    if let Some(palette) = palette {
        encoder.set_palette(palette);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

#[test]
fn probabilities_are_those_of_the_reference() {
    let folder = folder("classify-reference");
    let reference = reference();
    let write = |(index, (pixels, _)): (usize, &(Vec<u8>, Vec<f64>))| {
        let path = folder.join(format!("{index}.pgm"));
        fs::write(&path, [b"P5 # a comment\n28 28\n255\n", pixels.as_slice()].concat()).unwrap();
        path
    };
    let files: Vec<PathBuf> = reference.iter().enumerate().map(write).collect();
    let found = probabilities(&files, &[]);
    assert_eq!(found.len(), 64);
    for (found, (_, logits)) in found.iter().zip(&reference) {
        assert_close(found, &softmax(logits), 1e-3);
    }
}

#[test]
fn examples_show_what_their_names_say() {
    let labels = read_json(&format!("{CLASSIFIER}/config.json"))["id2label"].take();
    let reference = read_json(&format!("{CLASSIFIER}/reference.json"));
    for (name, example) in reference["examples"].as_object().unwrap() {
        let file = format!("{CLASSIFIER}/examples/{name}");
        let label = labels[example["label"].to_string()].as_str().unwrap();
        let shown = stdout(&["classify", &file, "--top", "1"]);
        let probability =
            shown.strip_prefix(&format!("{file}  {label} ")).unwrap_or_else(|| panic!("{shown}"));
        assert!(probability.ends_with(" %\n"), "{shown}");
        assert_eq!(stdout(&["classify", &file]).matches(" %").count(), 3);
        let report = json(&["classify", &file, "--json"]);
        assert_eq!((&report[0]["file"], &report[0]["classes"][0]["label"]), (&file.into(), &label.into()));
    }
}

#[test]
fn every_kind_of_png_is_the_same_image() {
    let folder = folder("classify-png");
    let (grey, logits) = reference().swap_remove(0);
    let each =
        |bytes: &dyn Fn(u8) -> Vec<u8>| grey.iter().flat_map(|&value| bytes(value)).collect::<Vec<u8>>();
    let ramp = (0..=255).rev().flat_map(|value| [value; 3]).collect::<Vec<u8>>();
    let kinds = [
        (ColorType::Grayscale, BitDepth::Eight, grey.clone(), None),
        (ColorType::Grayscale, BitDepth::Sixteen, each(&|value| vec![value, 0x55]), None),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, each(&|value| vec![255, value]), None),
        (ColorType::Rgb, BitDepth::Eight, each(&|value| vec![value; 3]), None),
        (ColorType::Rgba, BitDepth::Eight, each(&|value| vec![255, 255, 255, value]), None),
        (ColorType::Indexed, BitDepth::Eight, each(&|value| vec![255 - value]), Some(ramp)),
    ];
    let mut files = Vec::new();
    for (index, (colours, depth, data, palette)) in kinds.into_iter().enumerate() {
        files.push(folder.join(format!("{index}.png")));
        write_png(&files[index], colours, depth, &data, palette);
    }
    let ppm = folder.join("colours.ppm");
    fs::write(&ppm, [b"P6\n28 28 255\n".as_slice(), &each(&|value| vec![value; 3])].concat()).unwrap();
    files.push(ppm);
    for found in probabilities(&files, &[]) {
        assert_close(&found, &softmax(&logits), 1e-3);
    }

    // Dark on bright, with and without a ground.
    let dark = [folder.join("dark.png"), folder.join("on-nothing.png")];
    write_png(&dark[0], ColorType::Grayscale, BitDepth::Eight, &each(&|value| vec![255 - value]), None);
    write_png(&dark[1], ColorType::GrayscaleAlpha, BitDepth::Eight, &each(&|value| vec![0, value]), None);
    for found in probabilities(&dark, &["--invert"]) {
        assert_close(&found, &softmax(&logits), 1e-3);
    }
}

#[test]
fn what_goes_wrong_names_the_file() {
    let folder = folder("classify-bad");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bag = format!("{CLASSIFIER}/examples/bag.png");
    let whole = fs::read(&bag).unwrap();
    let mut huge = Vec::new();
    Encoder::new(&mut huge, 1 << 20, 1 << 20).write_header().unwrap();
    let huge = write("huge.png", &huge);
    let huge_grey = write("huge.pgm", b"P5 4294967295 4294967295 255\n");
    let wide = write("wide.pgm", b"P5 99999999 99999999 255\n");
    let cut = write("cut.png", &whole[..whole.len() / 2]);
    let short = write("short.pgm", b"P5 2 2 255\nabc");
    let deep = write("deep.pgm", b"P5 2 2 65535\nabcdefgh");
    let text = write("text.png", b"not an image");
    let empty = write("empty.png", b"");
    let missing = folder.join("missing.png");
    let missing = missing.to_str().unwrap();
    let size = "expected 1 to 67,108,864 pixels";
    let cases: [(&str, &[&str]); 9] = [
        (&huge, &["size: found 1048576 × 1048576", size]),
        (&huge_grey, &["width: "]),
        (&wide, &["size: found 99999999 × 99999999", size]),
        (&cut, &["content", "expected a whole PNG file"]),
        (&short, &["pixels: found 3 bytes, expected as many as its size says"]),
        (&deep, &["largest value: found 65535, expected 1 to 255"]),
        (&text, &["content: found something else, expected a PNG, PGM (P5) or PPM (P6) file"]),
        (&empty, &["content: found something else"]),
        (missing, &["No such file"]),
    ];
    for (file, parts) in cases {
        // After a good one: nothing is printed of that.
        fails(&["classify", &bag, file], &[&[file], parts].concat());
    }
    fails_with(&["classify", &bag, "--top", "11"], "error: top: found 11, expected 1 to 10\n");
    fails_with(
        &["classify", &bag, "--model", PROSE],
        "error: model: found one for the task generate, expected one for the task classify\n",
    );
    assert_eq!(run(&mut headwise(&["classify"])).0, 2);
}
