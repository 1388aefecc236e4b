//! The text that is being written, by a thread of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eframe::{egui, egui_wgpu::RenderState};
use headwise::{Generate, Gpu, GpuOptions, KernelChoice, Model, TokenStream, block_on};

/// A piece of the text.
pub struct Piece {
    pub text: String,
    /// The head expert that weighs most, layer by layer.
    pub heads: Vec<u32>,
}

/// What there is so far.
#[derive(Default)]
pub struct Written {
    pub pieces: Vec<Piece>,
    pub done: bool,
    pub error: Option<String>,
}

/// Shared with the thread that writes.
#[derive(Clone, Default)]
pub struct Writer(Arc<Mutex<Written>>);

impl Writer {
    /// Loads the demo model on the window's device and starts to write; `context` is drawn anew with each token.
    pub fn start(state: &RenderState, prompt: String, context: egui::Context) -> headwise::Result<Self> {
        let gpu = Gpu::from_wgpu(
            &state.adapter,
            &state.device,
            &state.queue,
            GpuOptions::new().kernels(KernelChoice::Tuned),
        )?;
        let writer = Self::default();
        let shared = writer.clone();
        std::thread::spawn(move || {
            let ended = block_on(shared.write(&gpu, &prompt, &context));
            let mut written = shared.look();
            written.done = true;
            written.error = ended.err().map(|error| error.to_string());
            context.request_repaint();
        });
        Ok(writer)
    }

    async fn write(&self, gpu: &Gpu, prompt: &str, context: &egui::Context) -> headwise::Result<()> {
        let model = Model::demo(gpu).await?;
        let options = Generate::new().max_new(120).seed(1).with_routes();
        let mut tokens: TokenStream = model.stream(prompt, &options);
        while let Some(token) = tokens.next().await {
            let token = token?;
            let layers = token.routes.iter().flat_map(|routes| &routes.layers);
            let heads = layers.map(|layer| {
                let heaviest = layer.attention.iter().max_by(|a, b| a.gate.total_cmp(&b.gate));
                heaviest.map_or(0, |choice| choice.expert)
            });
            let piece = Piece { heads: heads.collect(), text: token.text };
            self.look().pieces.push(piece);
            context.request_repaint();
        }
        Ok(())
    }

    pub fn look(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
