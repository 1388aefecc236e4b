//! Numbers as Python writes and reads them.

/// A float as Python's `repr` has it.
pub(super) fn repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{mantissa}{}", python_exponent(exponent))
}

/// An exponent as Python and C write it: a sign and two digits at least.
fn python_exponent(exponent: i32) -> String {
    format!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%f`, `%e` and `%g` of a number that is finite or not.
pub(super) fn formatted(number: f64, kind: char, precision: usize, alternate: bool) -> String {
    let text = if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf" } else { "-inf" }.to_owned()
    } else {
        match kind.to_ascii_lowercase() {
            'e' => scientific(number, precision),
            'g' => general(number, precision, alternate),
            _ => format!("{number:.precision$}"),
        }
    };
    if kind.is_ascii_uppercase() { text.to_uppercase() } else { text }
}

fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{mantissa}{}", python_exponent(exponent.parse().unwrap_or(0)))
}

fn general(number: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let text = format!("{number:.*e}", precision - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| {
        if alternate || !text.contains('.') {
            return text.to_owned();
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if exponent < -4 || i64::from(exponent) >= precision as i64 {
        return trimmed(mantissa) + &python_exponent(exponent);
    }
    let decimals = (precision as i64 - 1 - i64::from(exponent)).max(0) as usize;
    trimmed(&format!("{number:.decimals$}"))
}

/// A whole number in a base.
pub(super) fn in_base(number: u64, kind: char) -> String {
    match kind {
        'x' => format!("{number:x}"),
        'X' => format!("{number:X}"),
        'o' => format!("{number:o}"),
        'b' => format!("{number:b}"),
        _ => number.to_string(),
    }
}

/// Python's `int(text, base)`.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i64> {
    let text = text.trim_matches(super::lexer::is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        16 => ["0x", "0X"],
        8 => ["0o", "0O"],
        2 => ["0b", "0B"],
        _ => ["", ""],
    };
    let digits = prefix
        .into_iter()
        .filter(|prefix| !prefix.is_empty())
        .find_map(|prefix| digits.strip_prefix(prefix))
        .unwrap_or(digits);
    let digits = underscored(digits)?;
    if digits.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    i64::from_str_radix(&if negative { format!("-{digits}") } else { digits }, base).ok()
}

/// Python's `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = underscored(text.trim_matches(super::lexer::is_space))?;
    text.parse().ok()
}

/// Digits without the underscores that may stand between two of them.
fn underscored(text: &str) -> Option<String> {
    let wrong = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    if wrong { None } else { Some(text.replace('_', "")) }
}
