//! What Python does with texts.

use super::lexer::is_space;

/// Whether a line ends with it.
pub(super) fn ends_line(char: char) -> bool {
    matches!(char, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Where lines end: Python's `str.splitlines` knows more ends than `\n`.
pub(super) fn split_lines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends_line) {
        let char = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { char };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Words between spaces, at most `most` splits, from the left.
pub(super) fn split_space(text: &str, most: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = match most {
            Some(most) if words.len() == most => rest.len(),
            _ => rest.find(is_space).unwrap_or(rest.len()),
        };
        let last = end == rest.len() && most.is_some_and(|most| words.len() == most);
        words.push(if last { rest } else { &rest[..end] });
        rest = rest[end..].trim_start_matches(is_space);
    }
    // Python strips what stays unsplit on its right only where it was split off.
    words
}

/// Words between spaces, at most `most` splits, from the right.
pub(super) fn rsplit_space(text: &str, most: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let start = match most {
            Some(most) if words.len() == most => 0,
            _ => {
                rest.rfind(is_space).map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8))
            }
        };
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    words.reverse();
    words
}

/// Its first character large, the others small.
pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.collect::<String>() + &chars.as_str().to_lowercase()
}

/// Python's `str.title`: each letter after what is no letter is large.
pub(super) fn titled(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match after_letter {
            true => out.extend(char.to_lowercase()),
            false => out.extend(char.to_uppercase()),
        }
        after_letter = is_cased(char);
    }
    out
}

/// Jinja's `title`: each word begins large, where spaces, hyphens and opening brackets end words.
pub(super) fn title_words(text: &str) -> String {
    let ends = |char: char| is_space(char) || matches!(char, '-' | '(' | '{' | '[' | '<');
    text.split_inclusive(ends).map(capitalised).collect()
}

pub(super) fn swapped(text: &str) -> String {
    let swap = |char: char| -> String {
        if char.is_uppercase() { char.to_lowercase().collect() } else { char.to_uppercase().collect() }
    };
    text.chars().map(swap).collect()
}

/// Whether its letters, of which there are some, are small.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// Whether its letters, of which there are some, are large.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn is_cased(char: char) -> bool {
    char.is_lowercase() || char.is_uppercase()
}

pub(super) fn is_title(text: &str) -> bool {
    let (mut after_letter, mut any) = (false, false);
    for char in text.chars() {
        if after_letter && char.is_uppercase() || !after_letter && char.is_lowercase() {
            return false;
        }
        after_letter = is_cased(char);
        any |= after_letter;
    }
    any
}

pub(super) fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|char| char == '_' || char.is_alphabetic())
        && chars.all(|char| char == '_' || char.is_alphanumeric())
}

/// HTML's special characters, escaped as markupsafe does.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(char),
        }
    }
    out
}

/// A text for an address: all but letters, digits and `_.-~/` as `%XX`.
pub(super) fn url_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A text without HTML's tags, its spaces made one.
pub(super) fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let comment = rest[start..].starts_with("<!--");
        let end = if comment {
            rest[start..].find("-->").map(|at| at + 3)
        } else {
            rest[start..].find('>').map(|at| at + 1)
        };
        let Some(end) = end else { break };
        out.push_str(&rest[..start]);
        rest = &rest[start + end..];
    }
    out.push_str(rest);
    split_space(&out, None).join(" ")
}

/// A name, short enough for a message.
pub(super) fn short(name: &str) -> String {
    name.chars().take(40).collect()
}
