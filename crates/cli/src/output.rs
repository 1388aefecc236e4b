//! Stdout: whole lines, tables, JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::failure::Failure;

/// Prints text and a line break.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Rows in columns, the first row being their names; numbers to the right, the columns of `texts` to the left.
pub fn columns(rows: &[Vec<String>], texts: &[usize]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cell = |(column, cell): (usize, &String)| match texts.contains(&column) {
            true => format!("{:<1$}", cell, width(column)),
            false => format!("{:>1$}", cell, width(column)),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A model may write control characters; a terminal would obey them.
pub fn fit_to_print(text: &str, terminal: bool) -> String {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if terminal { text.replace(obeyed, "\u{fffd}") } else { text.to_owned() }
}

/// Prints a value as JSON on one line.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    line(&text)
}

/// Names and values in two columns.
pub fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

/// A probability in percent: `98.2 %`, ` 0.1 %`.
pub fn percent(probability: f32) -> String {
    format!("{:4.1} %", 100.0 * probability)
}

/// 10021824 as `10,021,824`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
