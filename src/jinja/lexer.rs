//! From a template's source to tokens, with jinja2's rules for the space around tags: `trim_blocks`, `lstrip_blocks`, `-`, `+`.

use std::sync::Arc;

use super::{Fault, Outcome};

/// A token and where it starts.
#[derive(Debug)]
pub(super) struct Token {
    pub kind: Tok,
    pub at: usize,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tok {
    Text(Arc<str>),
    OutputBegin,
    OutputEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i64),
    Float(f64),
    Op(&'static str),
    End,
}

/// Operators, longer ones before their beginnings.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Line breaks as one character each, without the one at the end.
pub(super) fn normalise(source: &str) -> String {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    source
}

/// What Python takes for space.
pub(super) fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

/// The tokens of a normalised source.
pub(super) fn lex(source: &str) -> Outcome<Vec<Token>> {
    let mut lexer = Lexer { source, at: 0, line_starts: true, tokens: Vec::new() };
    while lexer.text()? {}
    lexer.push(Tok::End, source.len());
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    /// Whether the last tag took its line's break with it.
    line_starts: bool,
    tokens: Vec<Token>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Tok, at: usize) {
        self.tokens.push(Token { kind, at });
    }

    fn fault<T>(&self, at: usize, message: impl Into<String>) -> Outcome<T> {
        Err(Box::new(Fault { at: Some(at), message: message.into(), raised: false }))
    }

    fn skip_space(&mut self) {
        self.at = self.source.len() - self.rest().trim_start_matches(is_space).len();
    }

    /// Takes `text` if it comes next.
    fn takes(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Text up to the next tag, and that tag; whether there was one.
    fn text(&mut self) -> Outcome<bool> {
        let (rest, start) = (self.rest(), self.at);
        let tag = rest.match_indices('{').map(|(at, _)| at);
        let tag = tag.into_iter().find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
        let Some(length) = tag else {
            self.push_text(rest, start);
            return Ok(false);
        };
        let (begin, tag) = (start + length, rest.as_bytes()[length + 1]);
        self.at = begin + 2;
        let sign = self.sign();
        let text = self.before_tag(&rest[..length], sign, tag != b'{');
        self.push_text(text, start);
        self.line_starts = false;
        match tag {
            b'#' => self.comment(begin)?,
            b'{' => {
                self.push(Tok::OutputBegin, begin);
                self.inside(begin, "}}", Tok::OutputEnd)?;
            }
            _ if self.takes_raw() => self.raw(begin)?,
            _ => {
                self.push(Tok::BlockBegin, begin);
                self.inside(begin, "%}", Tok::BlockEnd)?;
            }
        }
        Ok(true)
    }

    fn push_text(&mut self, text: &str, at: usize) {
        if !text.is_empty() {
            self.push(Tok::Text(text.into()), at);
        }
    }

    /// The sign that a tag begins with.
    fn sign(&mut self) -> Option<u8> {
        let sign = self.rest().bytes().next().filter(|byte| matches!(byte, b'-' | b'+'));
        self.at += usize::from(sign.is_some());
        sign
    }

    /// What is left of the text before a tag.
    fn before_tag<'a>(&self, text: &'a str, sign: Option<u8>, block: bool) -> &'a str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            None if block => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let whole = line > 0 || self.line_starts;
                if whole && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
            _ => text,
        }
    }

    /// Takes a tag's end, with the space that goes with it.
    fn takes_end(&mut self, end: &str, trim: bool) -> bool {
        let start = self.at;
        let minus = self.takes("-");
        let plus = !minus && end != "}}" && self.takes("+");
        if !self.takes(end) {
            self.at = start;
            return false;
        }
        if minus {
            self.skip_space();
        } else if !plus && trim {
            self.takes("\n");
        }
        self.line_starts = self.source[..self.at].ends_with('\n');
        true
    }

    fn comment(&mut self, begin: usize) -> Outcome<()> {
        let Some(length) = self.rest().find("#}") else {
            return self.fault(begin, "a comment that does not end");
        };
        let end = self.at + length;
        // The end's sign may be the comment's last character.
        let sign = self.source[self.at..end].ends_with(['-', '+']);
        self.at = end - usize::from(sign);
        self.takes_end("#}", true);
        Ok(())
    }

    /// Takes the rest of `{% raw %}`.
    fn takes_raw(&mut self) -> bool {
        let start = self.at;
        self.skip_space();
        if self.takes("raw") {
            self.skip_space();
            if !self.rest().starts_with('+') && self.takes_end("%}", false) {
                return true;
            }
        }
        self.at = start;
        false
    }

    /// Text up to `{% endraw %}`, as it is.
    fn raw(&mut self, begin: usize) -> Outcome<()> {
        let start = self.at;
        let mut from = start;
        while let Some(length) = self.source[from..].find("{%") {
            let end = from + length;
            self.at = end + 2;
            let sign = self.sign();
            self.skip_space();
            if self.takes("endraw") {
                self.skip_space();
                let line_starts = self.line_starts;
                if self.takes_end("%}", true) {
                    let after = std::mem::replace(&mut self.line_starts, line_starts);
                    let text = self.before_tag(&self.source[start..end], sign, true);
                    self.line_starts = after;
                    self.push_text(text, start);
                    return Ok(());
                }
            }
            from = end + 2;
        }
        self.fault(begin, "raw text that does not end")
    }

    /// The tokens between a tag's begin and its end.
    fn inside(&mut self, begin: usize, end: &str, last: Tok) -> Outcome<()> {
        let mut open: Vec<char> = Vec::new();
        loop {
            self.skip_space();
            let at = self.at;
            if open.is_empty() && self.takes_end(end, end == "%}") {
                self.push(last, at);
                return Ok(());
            }
            let Some(char) = self.rest().chars().next() else {
                return self.fault(begin, "a tag that does not end");
            };
            let kind = match char {
                '0'..='9' => self.number()?,
                '\'' | '"' => self.string(char)?,
                _ if char == '_' || char.is_alphabetic() => {
                    let rest = self.rest();
                    let word = |char: char| char == '_' || char.is_alphanumeric();
                    let name = &rest[..rest.find(|char| !word(char)).unwrap_or(rest.len())];
                    self.at += name.len();
                    Tok::Name(name.into())
                }
                _ => {
                    let Some(operator) = OPERATORS.into_iter().find(|operator| self.takes(operator)) else {
                        return self.fault(at, format!("an unexpected character {char:?}"));
                    };
                    match operator {
                        "(" => open.push(')'),
                        "[" => open.push(']'),
                        "{" => open.push('}'),
                        ")" | "]" | "}" if open.pop() != Some(char) => {
                            return self.fault(at, format!("a {char} that closes nothing"));
                        }
                        _ => {}
                    }
                    Tok::Op(operator)
                }
            };
            self.push(kind, at);
        }
    }

    fn number(&mut self) -> Outcome<Tok> {
        let at = self.at;
        for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            let rest = self.rest();
            if rest.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
                self.at += 2;
                let digits = self.digits(base);
                return match i64::from_str_radix(&digits, base) {
                    Ok(number) => Ok(Tok::Int(number)),
                    Err(_) => self.fault(at, "a number that does not fit 64 bits"),
                };
            }
        }
        let mut text = self.digits(10);
        // `a.0.1` are items.
        let after_dot = self.source[..at].ends_with('.');
        let mut float = false;
        if !after_dot {
            let digit = |text: &str| text.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
            if self.rest().strip_prefix('.').is_some_and(digit) {
                self.at += 1;
                text = format!("{text}.{}", self.digits(10));
                float = true;
            }
            if let Some(rest) = self.rest().strip_prefix(['e', 'E']) {
                let unsigned = rest.strip_prefix(['+', '-']);
                if digit(unsigned.unwrap_or(rest)) {
                    let sign = unsigned.map_or("", |_| &rest[..1]);
                    self.at += 1 + sign.len();
                    text = format!("{text}e{sign}{}", self.digits(10));
                    float = true;
                }
            }
        }
        let number = if float { text.parse().ok().map(Tok::Float) } else { text.parse().ok().map(Tok::Int) };
        number.map_or_else(|| self.fault(at, "a number that does not fit 64 bits"), Ok)
    }

    fn digits(&mut self, base: u32) -> String {
        let rest = self.rest();
        let end = rest.find(|char: char| char != '_' && !char.is_digit(base)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].replace('_', "")
    }

    fn string(&mut self, quote: char) -> Outcome<Tok> {
        let begin = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let mut chars = self.rest().chars();
            let Some(char) = chars.next() else {
                return self.fault(begin, "a string that does not end");
            };
            self.at += char.len_utf8();
            match char {
                _ if char == quote => return Ok(Tok::Str(text.into())),
                '\\' => self.escape(&mut text)?,
                _ => text.push(char),
            }
        }
    }

    /// What follows a backslash, as in Python's strings.
    fn escape(&mut self, text: &mut String) -> Outcome<()> {
        let at = self.at - 1;
        let Some(char) = self.rest().chars().next() else {
            return self.fault(at, "a string that does not end");
        };
        self.at += char.len_utf8();
        match char {
            '\n' => {}
            '\\' | '\'' | '"' => text.push(char),
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'a' => text.push('\x07'),
            'b' => text.push('\x08'),
            'f' => text.push('\x0c'),
            'v' => text.push('\x0b'),
            'x' => text.push(self.code(at, 2)?),
            'u' => text.push(self.code(at, 4)?),
            'U' => text.push(self.code(at, 8)?),
            '0'..='7' => {
                let rest = &self.source[at + 1..];
                let length = rest.bytes().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                self.at = at + 1 + length;
                text.extend(u32::from_str_radix(&rest[..length], 8).ok().and_then(char::from_u32));
            }
            _ => text.extend(['\\', char]),
        }
        Ok(())
    }

    fn code(&mut self, at: usize, length: usize) -> Outcome<char> {
        let digits =
            self.rest().get(..length).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let char = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        self.at += length;
        char.map_or_else(|| self.fault(at, "an escape that is no character"), Ok)
    }
}
