//! Which attention experts a text uses: counts per layer, from the routes of every token.
//!
//! `cargo run --release --example watch_heads -- "It is a truth universally acknowledged"`

use headwise::{Gpu, GpuOptions, Model, block_on};

fn main() -> headwise::Result<()> {
    let text = std::env::args().nth(1).unwrap_or_else(|| "And the LORD said unto".to_owned());
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let model = block_on(Model::demo(&gpu))?;
    let ids = model.tokenizer()?.encode(&text)?;
    let logits = block_on(model.logits(&[&ids]))?.remove(0);

    let attention = model.info().attention;
    println!("{} tokens, {} of {} head experts each", ids.len(), attention.active, attention.experts);
    for layer in 0..model.info().layers as usize {
        let mut load = vec![0.0; attention.experts as usize];
        for token in &logits.routes {
            for choice in &token.layers[layer].attention {
                load[choice.expert as usize] += choice.gate;
            }
        }
        let bars: Vec<String> = load.iter().map(|gates| format!("{gates:5.1}")).collect();
        println!("layer {layer}: gate mass by expert {}", bars.join(" "));
    }
    Ok(())
}
