//! A folder that `quantize` wrote gives the same bits as the original quantised at load, for every way in which files
//! hold matrices.

use std::path::{Path, PathBuf};

use headwise::{
    Image, KernelChoice, LoadOptions, Model, ModelInfo, Precision, QuantizeOptions, Source, block_on,
    quantize,
};
use serde_json::{Value, json};

use crate::{
    command::folder,
    models::try_load,
    reference::checkpoints::{
        SEED, SOURCE, TARGET, bam_config, image, moa_config, switch_head_config, uoe_config, vit_config,
        with, write_random,
    },
};

const SCHEMES: [Precision; 3] = [Precision::Q8, Precision::Q4, Precision::F16];

/// What a model says to a fixed input, as bits.
fn bits(model: &Model) -> Vec<u32> {
    let values: Vec<f32> = match model.info().task {
        "translate" => block_on(model.translation_logits(&SOURCE, &TARGET)).unwrap().target.values,
        "classify" => {
            let (planes, area) = (image(), 12 * 12);
            let pixels = (0..area).flat_map(|at| (0..3).map(move |c| (c, at)));
            let pixels = pixels.map(|(c, at)| planes[c * area + at] as u8).collect();
            let image = Image::new(12, 12, 3, pixels).unwrap();
            let found = block_on(model.classify(&[image], 3)).unwrap().remove(0);
            found.classes.iter().map(|class| class.probability).collect()
        }
        _ => block_on(model.logits(&[&SOURCE])).unwrap().remove(0).values,
    };
    assert!(values.iter().all(|value| value.is_finite()));
    values.into_iter().map(f32::to_bits).collect()
}

fn load(folder: &Path, precision: Option<Precision>) -> Model {
    let options = LoadOptions::new();
    let options = precision.map_or(LoadOptions::new(), |precision| options.precision(precision));
    try_load(KernelChoice::Plain, folder, options).unwrap()
}

#[track_caller]
fn assert_same(original: &Path, scheme: Precision) -> Model {
    let copy = folder(&format!("quantized-{}", crate::files::unique())).join("copy");
    let written = quantize(original, &copy, QuantizeOptions::new(scheme)).unwrap();
    let info = block_on(ModelInfo::read(&Source::folder(original))).unwrap();
    assert_eq!(written.parameters, info.parameters);

    let (at_load, from_file) = (load(original, Some(scheme)), load(&copy, None));
    assert_eq!(from_file.precision(), scheme);
    assert!(bits(&at_load) == bits(&from_file), "{original:?} in {scheme:?}: other bits from the file");
    let bytes = from_file.info().weight_bytes(scheme);
    assert_eq!(bytes, info.weight_bytes(scheme), "planned from the file and from the original");
    assert_eq!(from_file.gpu().allocated_bytes(), bytes, "planned and allocated");
    from_file
}

/// Configs whose matrices are quantised: widths of whole groups, heads that need padding to become so.
fn wide() -> Vec<(&'static str, Value)> {
    // Rotated heads have no padding.
    let decoder = json!({"hidden_size": 64, "intermediate_size": 96, "head_dim": 32});
    let vit = with(&decoder, &json!({"head_dim": 30}));
    vec![
        ("moa", with(&moa_config(), &json!({"d_model": 64, "head_dim": 30, "ffn_dim": 96}))),
        ("vit", with(&vit_config(), &vit)),
        ("bam", with(&bam_config(), &decoder)),
        ("switchhead", with(&switch_head_config(), &decoder)),
        ("uoe", with(&uoe_config(), &decoder)),
    ]
}

#[test]
fn a_quantized_folder_has_the_bits_of_quantising_at_load() {
    for (name, config) in wide() {
        let original = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wide").join(name);
        write_random(&original, &config, SEED);
        for scheme in SCHEMES {
            let model = assert_same(&original, scheme);
            let info = model.info();
            let whole: u64 = info.parameters;
            if scheme == Precision::Q4 {
                // Most of it is quantised, so the test is of something.
                assert!(info.weight_bytes(scheme) < 2 * whole, "{name}: {:?}", info.kept_f16);
                assert!(info.quantized && info.memory.len() == 1);
            }
        }
    }
}

/// JetMoE, a trained model; and one whose rows are no whole groups, which becomes f16 throughout.
#[test]
fn so_have_published_layouts() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for scheme in SCHEMES {
        let model = assert_same(&root.join("models/prose"), scheme);
        assert_eq!(model.info().kept_f16, ["model.embed_tokens.weight"]);
        assert!(model.info().tied_head);
    }
    let model = assert_same(&root.join("tests/fixtures/molm_tiny_2head"), Precision::Q4);
    assert!(!model.info().kept_f16.is_empty());
}

/// Every shape of the hot kernels, on whole models: they agree as well as they do in f16.
#[test]
fn kernel_shapes_agree_in_q8_and_q4() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/prose"));
    let ids: Vec<u32> = (0..40).map(|i| i * 97 % 4096).collect();
    for precision in [Precision::Q8, Precision::Q4] {
        let logits = |shape, steps| {
            let model = try_load(shape, root, LoadOptions::new().precision(precision)).unwrap();
            crate::models::logits(&model, &ids[..steps], steps).values
        };
        for steps in [3, 40] {
            let plain = crate::reference::widen(&logits(KernelChoice::Plain, steps));
            for shape in [KernelChoice::Workgroup, KernelChoice::Subgroup] {
                let found = crate::reference::widen(&logits(shape, steps));
                let worst = crate::reference::max_difference(&found, &plain);
                assert!(worst < 2e-3, "{precision:?}, {shape:?}, {steps} tokens: logits differ by {worst}");
            }
        }
    }
}
