//! What it costs to look: a prompt of 512 tokens of a random model (8 layers, 768 wide, 12 heads), with the statistics of all rows of
//! all heads, and without. `cargo bench --bench observe` prints both in turns, and the ratio of their medians.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use headwise::{
    Gpu, GpuOptions, LoadOptions, LogitRows, Model, Observe, Run, SessionOptions, Source, block_on,
};
use safetensors::{Dtype, tensor::TensorView};

const LAYERS: usize = 8;
const WIDTH: usize = 768;
const INSIDE: usize = 2048;
const VOCAB: usize = 1000;
const TOKENS: usize = 512;
const ROUNDS: usize = 5;

/// Writes a dense model of small random numbers.
fn write(folder: &Path) {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("lm_head.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        ["q", "k", "v", "o"].iter().for_each(|part| add(&format!("self_attn.{part}_proj"), &[WIDTH, WIDTH]));
        ["gate", "up"].iter().for_each(|part| add(&format!("mlp.{part}_proj"), &[INSIDE, WIDTH]));
        add("mlp.down_proj", &[WIDTH, INSIDE]);
        ["input", "post_attention"].iter().for_each(|part| add(&format!("{part}_layernorm"), &[WIDTH]));
    }
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        half::f16::from_f32((state >> 16) as f32 / 1e6 - 0.03).to_le_bytes()
    };
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| (0..shape.iter().product::<usize>()).flat_map(|_| random()).collect())
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = shapes
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| {
            (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap())
        })
        .collect();
    fs::create_dir_all(folder).unwrap();
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
        "intermediate_size": INSIDE, "vocab_size": VOCAB, "max_position_embeddings": TOKENS, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("observe");
    write(&folder);
    let gpu = block_on(Gpu::new(GpuOptions::new())).expect("an adapter");
    let model = block_on(Model::load(&gpu, &Source::folder(&folder), LoadOptions::new())).expect("a model");
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % VOCAB as u32).collect();
    let step = |observe: Option<&Observe>| {
        let mut session =
            model.session(SessionOptions::new().positions(TOKENS as u32).reserve(TOKENS as u32)).unwrap();
        session.set_observe(observe).unwrap();
        let start = Instant::now();
        session.forward(&[Run::ids(0, &ids).logits(LogitRows::Last)]).unwrap();
        match observe {
            Some(_) => drop(block_on(session.observed()).unwrap()),
            None => drop(block_on(session.logits(0)).unwrap()),
        }
        start.elapsed().as_secs_f64()
    };
    let observe = Observe::new().capture("L*H*:rows".parse().unwrap());
    let (mut plain, mut rows) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let times = [step(None), step(Some(&observe))];
        // The first compiles.
        if round > 0 {
            plain.push(times[0]);
            rows.push(times[1]);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (plain, rows) = (median(&mut plain), median(&mut rows));
    println!("{}: {TOKENS} tokens", gpu.capabilities().name);
    println!("plain {plain:.3} s, with all rows {rows:.3} s: {:.2} times", rows / plain);
}
