//! The least an application needs: open a GPU, load the demo model, stream text.
//!
//! `cargo run --release --example embed_in_app -- "The king shall"`

use std::{
    io::{Write, stdout},
    ops::ControlFlow,
};

use headwise::{Generate, Gpu, GpuOptions, Model, block_on};

fn main() -> headwise::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "She had never".to_owned());
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let model = block_on(Model::demo(&gpu))?;
    print!("{prompt}");
    let generation = block_on(model.generate(&prompt, &Generate::new().max_new(80).seed(1), |token| {
        print!("{}", token.text);
        // A closed pipe ends the text.
        match stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }))?;
    println!("\n({} tokens)", generation.ids[0].len());
    Ok(())
}
