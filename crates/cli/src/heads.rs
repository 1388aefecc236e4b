//! Shows the head experts a token chose in one layer: the first as background, the second as underline. Where
//! there are no colours, in brackets: `word[3,5]`.

use headwise::{Choice, Error, LayerRoutes, ModelInfo, TokenRoutes};

type Rgb = [u8; 3];

/// Eight colours that colour-blind readers can tell apart (Okabe and Ito), grey in place of black.
const PALETTE: [Rgb; 8] = [
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x00, 0x9e, 0x73],
    [0xf0, 0xe4, 0x42],
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0xcc, 0x79, 0xa7],
    [0x99, 0x99, 0x99],
];

/// Ends all colours.
const RESET: &str = "\x1b[0m";

/// How colours are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Colours {
    /// 24 bits.
    True,
    /// The 6×6×6 cube of 256-colour terminals.
    Cube,
}

/// Which heads are shown.
#[derive(Clone, Copy)]
enum Heads {
    /// Those that attend to the text itself.
    Own,
    /// Those that attend to the source of a translation.
    Cross,
}

impl Heads {
    fn of(self, routes: &LayerRoutes) -> &[Choice] {
        match self {
            Self::Own => &routes.attention,
            Self::Cross => &routes.cross,
        }
    }
}

/// Shows tokens with the head experts of one layer.
pub struct Painter {
    layer: usize,
    heads: Heads,
    colours: Option<Colours>,
}

impl Painter {
    /// Colours by what the environment and `terminal` (stdout is one) allow.
    pub fn new(layer: usize, terminal: bool) -> Self {
        let colours = colours(terminal, |name| std::env::var(name).ok());
        Self { layer, heads: Heads::Own, colours }
    }

    /// Shows the heads that attend to the source of a translation instead.
    pub fn cross(mut self) -> Self {
        self.heads = Heads::Cross;
        self
    }

    /// Says what the colours or brackets mean, in lines before the text.
    pub fn legend(&self, info: &ModelInfo) -> String {
        let kind = match self.heads {
            Heads::Own => "head experts",
            Heads::Cross => "cross-attention head experts",
        };
        let layer = format!("{kind} of layer {} (0 to {})", self.layer, info.layers - 1);
        let Some(colours) = self.colours else {
            return format!("{layer}: text[first choice,second,…]\n\n");
        };
        let experts: Vec<String> = (0..info.attention.experts)
            .map(|expert| format!("{} {expert} {RESET}", background(colour(expert), colours)))
            .collect();
        let second = match info.attention.active {
            1 => "",
            _ => ", second: underline",
        };
        format!("{layer}, first choice: background{second}\n{}\n\n", experts.join(" "))
    }

    /// A token's text with its choices.
    pub fn paint(&self, text: &str, routes: Option<&TokenRoutes>) -> String {
        let Some(layer) = routes.and_then(|routes| routes.layers.get(self.layer)) else {
            return text.to_owned();
        };
        let experts: Vec<u32> = self.heads.of(layer).iter().map(|choice| choice.expert).collect();
        // Colours and brackets come before the line ends: there they belong to the word.
        let word = text.trim_end_matches('\n');
        let breaks = &text[word.len()..];
        match self.colours {
            None => {
                let experts: Vec<String> = experts.iter().map(u32::to_string).collect();
                format!("{word}[{}]{breaks}", experts.join(","))
            }
            Some(colours) => {
                // Something must carry the colour of a token that is only line breaks.
                let word = if word.is_empty() && !breaks.is_empty() { "↵" } else { word };
                let codes = codes(&experts, colours);
                let lines: Vec<String> =
                    word.split('\n').map(|line| format!("{codes}{line}{RESET}")).collect();
                lines.join("\n") + breaks
            }
        }
    }
}

/// Refuses a layer that the model does not have.
pub fn check_layer(layer: usize, info: &ModelInfo) -> Result<(), Error> {
    if layer < info.layers as usize {
        return Ok(());
    }
    let expected = format!("below the model's {} layers", info.layers);
    Err(Error::Argument { name: "layer", found: layer.to_string(), expected })
}

/// `NO_COLOR` and `CLICOLOR_FORCE` as <https://no-color.org> and <https://bixense.com/clicolors> define them;
/// what is forced goes first.
fn colours(terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Option<Colours> {
    let set = |name| variable(name).is_some_and(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE") && variable("CLICOLOR_FORCE").is_none_or(|value| value != "0");
    let dumb = variable("TERM").is_some_and(|term| term == "dumb");
    if !forced && (!terminal || dumb || set("NO_COLOR")) {
        return None;
    }
    let deep = variable("COLORTERM").is_some_and(|value| value == "truecolor" || value == "24bit");
    Some(if deep { Colours::True } else { Colours::Cube })
}

/// The colour of an expert: the palette, then its lighter and darker shades, then from the start again.
fn colour(expert: u32) -> Rgb {
    let base = PALETTE[expert as usize % PALETTE.len()];
    match expert as usize / PALETTE.len() % 3 {
        0 => base,
        1 => base.map(|channel| channel / 2 + 127),
        _ => base.map(|channel| channel / 2),
    }
}

/// The codes for a token's first two choices.
fn codes(experts: &[u32], colours: Colours) -> String {
    let mut codes = experts.first().map(|&first| background(colour(first), colours)).unwrap_or_default();
    if let Some(&second) = experts.get(1) {
        codes += &underline(colour(second), colours);
    }
    codes
}

/// A background, and black or white upon it, whichever is easier to read.
fn background(rgb: Rgb, colours: Colours) -> String {
    let [r, g, b] = rgb;
    let text = if is_light(rgb) { 16 } else { 231 };
    match colours {
        Colours::True => format!("\x1b[48;2;{r};{g};{b};38;5;{text}m"),
        Colours::Cube => format!("\x1b[48;5;{};38;5;{text}m", cube(rgb)),
    }
}

/// An underline. The colour is in the form with colons: terminals without coloured underlines skip it whole,
/// where they would take the semicolons of the other form for other codes.
fn underline(rgb: Rgb, colours: Colours) -> String {
    let [r, g, b] = rgb;
    match colours {
        Colours::True => format!("\x1b[4m\x1b[58:2::{r}:{g}:{b}m"),
        Colours::Cube => format!("\x1b[4m\x1b[58:5:{}m", cube(rgb)),
    }
}

/// Whether black is easier to read on it than white, by perceived brightness (ITU-R BT.601).
fn is_light([r, g, b]: Rgb) -> bool {
    299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) > 128_000
}

/// The nearest colour of the 6×6×6 cube.
fn cube(rgb: Rgb) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let nearest = |channel: u8| {
        let near = (0..6u8).min_by_key(|&level| LEVELS[usize::from(level)].abs_diff(channel));
        near.unwrap_or(0)
    };
    let [r, g, b] = rgb.map(nearest);
    16 + 36 * r + 6 * g + b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(experts: &[u32]) -> TokenRoutes {
        let mut layer = LayerRoutes::default();
        layer.attention = experts.iter().map(|&expert| Choice::new(expert, 0.5)).collect();
        layer.cross = vec![Choice::new(7, 1.0)];
        let mut routes = TokenRoutes::default();
        routes.layers.push(layer);
        routes
    }

    fn with(terminal: bool, variables: &[(&str, &str)]) -> Option<Colours> {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        colours(terminal, find)
    }

    #[test]
    fn the_environment_decides_on_colours() {
        assert_eq!(with(true, &[]), Some(Colours::Cube));
        assert_eq!(with(true, &[("COLORTERM", "truecolor")]), Some(Colours::True));
        assert_eq!(with(false, &[("COLORTERM", "truecolor")]), None);
        assert_eq!(with(true, &[("NO_COLOR", "1")]), None);
        assert_eq!(with(true, &[("NO_COLOR", "")]), Some(Colours::Cube));
        assert_eq!(with(true, &[("TERM", "dumb")]), None);
        assert_eq!(with(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), Some(Colours::Cube));
        assert_eq!(with(false, &[("CLICOLOR_FORCE", "0")]), None);
    }

    #[test]
    fn brackets_stay_with_their_word() {
        let painter = Painter { layer: 0, heads: Heads::Own, colours: None };
        let both = routes(&[3, 5]);
        for (text, shown) in
            [("word", "word[3,5]"), (".\n\n", ".[3,5]\n\n"), ("\n", "[3,5]\n"), ("", "[3,5]")]
        {
            assert_eq!(painter.paint(text, Some(&both)), shown);
        }
        assert_eq!(painter.paint("word", None), "word");
        assert_eq!(painter.cross().paint("word", Some(&both)), "word[7]");
    }

    #[test]
    fn colours_end_before_a_line_does() {
        let painter = Painter { layer: 0, heads: Heads::Own, colours: Some(Colours::True) };
        let codes = "\x1b[48;2;230;159;0;38;5;16m\x1b[4m\x1b[58:2::86:180:233m";
        assert_eq!(
            painter.paint(" a\nb\n", Some(&routes(&[0, 1]))),
            format!("{codes} a{RESET}\n{codes}b{RESET}\n")
        );
        assert_eq!(painter.paint("\n", Some(&routes(&[0, 1]))), format!("{codes}↵{RESET}\n"));
        let painter = Painter { layer: 0, heads: Heads::Own, colours: Some(Colours::Cube) };
        assert_eq!(painter.paint("a", Some(&routes(&[4]))), format!("\x1b[48;5;25;38;5;231ma{RESET}"));
    }

    #[test]
    fn every_expert_of_three_palettes_has_its_own_colour() {
        let mut seen: Vec<Rgb> = (0..24).map(colour).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 24);
        assert_eq!(colour(24), colour(0));
    }
}
