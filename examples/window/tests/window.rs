//! The window shows the text in the colours of its heads: those that the library reports for the same text, and no others. It needs
//! a display: `xvfb-run -a cargo test`.

#[path = "../src/colours.rs"]
mod colours;

use std::{collections::BTreeSet, fs::File, io::BufReader, ops::ControlFlow, path::Path, process::Command};

use colours::COLOURS;
use headwise::{Generate, Gpu, GpuOptions, KernelChoice, Model, block_on};

const PROMPT: &str = "The king shall";

/// The heads of the first layer that weigh most, of each token that can be seen.
fn heads() -> BTreeSet<usize> {
    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned))).unwrap();
    let model = block_on(Model::demo(&gpu)).unwrap();
    let options = Generate::new().max_new(120).seed(1).with_routes();
    let mut heads = BTreeSet::new();
    let written = model.generate(PROMPT, &options, |token| {
        let choices = token.routes.iter().flat_map(|routes| &routes.layers[0].attention);
        let heaviest = choices.max_by(|a, b| a.gate.total_cmp(&b.gate)).unwrap();
        if !token.text.trim().is_empty() {
            heads.insert(heaviest.expert as usize);
        }
        ControlFlow::Continue(())
    });
    block_on(written).unwrap();
    heads
}

#[test]
fn tokens_have_the_colours_of_their_heads() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("window.png");
    let _ = std::fs::remove_file(&file);
    let mut window = Command::new(env!("CARGO_BIN_EXE_headwise-window"));
    let run = window.arg("--screenshot").arg(&file).arg(PROMPT).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));

    let mut reader = png::Decoder::new(BufReader::new(File::open(&file).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    // A token is more than a few pixels, and letters in between are no colour of a head.
    let area = |head: &usize| {
        let pixel = COLOURS[*head].to_array();
        pixels.chunks_exact(4).filter(|found| **found == pixel).count()
    };
    let shown: BTreeSet<usize> = (0..COLOURS.len()).filter(|head| area(head) >= 20).collect();
    assert_eq!(shown, heads());
}
