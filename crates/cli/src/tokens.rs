//! Tokens with their text and the experts they chose, for the commands that read a whole text before they speak.

use headwise::{TokenRoutes, Tokenizer};
use serde::Serialize;

use super::{heads::Painter, output::fit_to_print};

#[derive(Serialize)]
pub struct RoutedToken<'a> {
    id: u32,
    text: String,
    routes: &'a TokenRoutes,
}

/// Ids with their texts, which make the whole text when put one after the other; special tokens have none.
pub fn routed<'a>(tokenizer: &Tokenizer, ids: &[u32], routes: &'a [TokenRoutes]) -> Vec<RoutedToken<'a>> {
    let tokens = ids.iter().zip(tokenizer.texts(ids)).zip(routes);
    tokens.map(|((&id, text), routes)| RoutedToken { id, text, routes }).collect()
}

/// The text with each token's heads, without the end token: it has nothing to show.
pub fn painted(tokens: &[RoutedToken<'_>], painter: &Painter, terminal: bool) -> String {
    let tokens = match tokens {
        [tokens @ .., end] if end.text.is_empty() => tokens,
        tokens => tokens,
    };
    let paint = |token: &RoutedToken| painter.paint(&fit_to_print(&token.text, terminal), Some(token.routes));
    tokens.iter().map(paint).collect()
}
