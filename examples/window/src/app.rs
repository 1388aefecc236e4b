//! The window.

use std::{error::Error, path::PathBuf};

use eframe::egui::{self, Color32, RichText};

use crate::{colours::COLOURS, picture, writer::Writer};

pub struct App {
    writer: Writer,
    layer: usize,
    screenshot: Option<PathBuf>,
}

impl App {
    pub fn new(
        context: &eframe::CreationContext<'_>,
        prompt: String,
        screenshot: Option<PathBuf>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let state = context.wgpu_render_state.as_ref().ok_or("the window has no wgpu device")?;
        let writer = Writer::start(state, prompt, context.egui_ctx.clone())?;
        Ok(Self { writer, layer: 0, screenshot })
    }

    fn draw(&mut self, ui: &mut egui::Ui) {
        let written = self.writer.look();
        let layers = written.pieces.first().map_or(1, |piece| piece.heads.len().max(1));
        ui.add(egui::Slider::new(&mut self.layer, 0..=layers - 1).text("layer"));
        ui.separator();
        egui::ScrollArea::vertical().show(ui, |ui| {
            ui.horizontal_wrapped(|ui| {
                ui.spacing_mut().item_spacing.x = 0.0;
                for piece in &written.pieces {
                    let head = piece.heads.get(self.layer).map_or(0, |head| *head as usize);
                    let text = RichText::new(&piece.text).size(18.0).color(Color32::BLACK);
                    ui.label(text.background_color(COLOURS[head % COLOURS.len()]))
                        .on_hover_text(format!("head expert {head}"));
                }
            });
            if let Some(error) = &written.error {
                ui.colored_label(Color32::RED, error);
            }
        });
    }

    /// Saves the picture once the text is whole, and closes the window.
    fn save(&mut self, context: &egui::Context) {
        let written = self.writer.look();
        let Some(file) = self.screenshot.take_if(|_| written.done) else { return };
        let (error, window) = (written.error.clone(), context.clone());
        context.request_screenshot(move |image| {
            if let Err(error) = error.map_or_else(|| picture::save(&image, &file), Err) {
                eprintln!("{}: {error}", file.display());
                std::process::exit(1);
            }
            window.send_viewport_cmd(egui::ViewportCommand::Close);
            window.request_repaint();
        });
        context.request_repaint();
    }
}

impl eframe::App for App {
    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        egui::CentralPanel::default().show(ui, |ui| self.draw(ui));
        let context = ui.ctx().clone();
        self.save(&context);
    }
}
