//! What people have in the place of a file: a Git LFS pointer, a web page, nothing at all.

use super::quote;
use crate::{Error, Result};

/// How a pointer begins, in Git LFS and in what it was called before.
const POINTERS: [&[u8]; 3] = [
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
    b"version http://git-media.io/v/",
];
/// The bytes of a file that show what it is.
pub(super) const HEAD: usize = 512;
/// As UTF-8, and as UTF-16 in either order.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// The text of a small file: its bytes without a byte order mark.
///
/// # Errors
/// What is no such file but stands in its place; text in UTF-16.
pub(crate) fn text(mut bytes: Vec<u8>, path: &str) -> Result<Vec<u8>> {
    let expected = if path.ends_with(".json") { "JSON" } else { "text" };
    refuse(&bytes[..bytes.len().min(HEAD)], path, expected)?;
    let [utf8, utf16 @ ..] = BYTE_ORDER_MARKS;
    if utf16.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(Error::bad_file(path, "content", "text in UTF-16", format!("{expected} in UTF-8")));
    }
    if bytes.starts_with(utf8) {
        bytes.drain(..utf8.len());
    }
    Ok(bytes)
}

/// Refuses a file that is empty, a Git LFS pointer or a web page; `head` is how it begins.
pub(super) fn refuse(head: &[u8], path: &str, expected: &str) -> Result<()> {
    let (found, instead) = if head.is_empty() {
        ("an empty file", format!("{expected}: fetch the file anew"))
    } else if POINTERS.iter().any(|pointer| head.starts_with(pointer)) {
        let advice = "run `git lfs install` and `git lfs pull` in the folder, or fetch the file itself";
        ("a Git LFS pointer, which stands for a file that was not fetched", format!("{expected}: {advice}"))
    } else if is_page(head) {
        let advice = "a hub has the file itself at /resolve/, where its page has /blob/";
        ("a web page (HTML)", format!("{expected}: {advice}"))
    } else {
        return Ok(());
    };
    Err(Error::bad_file(path, "content", found, instead))
}

/// As [`refuse`], for files that are not text: text of any kind is something else, such as a server's excuse.
pub(super) fn refuse_text(head: &[u8], path: &str, expected: &str) -> Result<()> {
    refuse(head, path, expected)?;
    let readable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match head.iter().all(readable) {
        true => {
            Err(Error::bad_file(path, "content", begins(head), format!("{expected}: fetch the file anew")))
        }
        false => Ok(()),
    }
}

/// A text by its first words.
pub(super) fn begins(text: &[u8]) -> String {
    let start = String::from_utf8_lossy(&text[..text.len().min(HEAD)]);
    let start: String = start.trim_start().chars().take(40).collect();
    format!("a text that begins with {}", quote(&start))
}

fn is_page(head: &[u8]) -> bool {
    let head = head.strip_prefix(BYTE_ORDER_MARKS[0]).unwrap_or(head).trim_ascii_start();
    let starts =
        |tag: &str| head.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()));
    starts("<!doctype html") || starts("<html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_what_is_one_is_left_alone() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        for (bytes, part) in [
            ("", "m/a.json: content: found an empty file, expected JSON: fetch"),
            (pointer, "found a Git LFS pointer"),
            (pointer, "`git lfs pull`"),
            ("\u{feff}\n <!DOCTYPE HTML>\n<p>", "found a web page (HTML), expected JSON: a hub has"),
            ("<html lang=en>", "a web page"),
        ] {
            let error = text(bytes.into(), "m/a.json").unwrap_err().to_string();
            assert!(error.contains(part), "{error} should say {part}");
        }
        for utf16 in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}"] {
            let error = text(utf16.to_vec(), "m/a.json").unwrap_err().to_string();
            assert_eq!(error, "m/a.json: content: found text in UTF-16, expected JSON in UTF-8");
        }
        assert_eq!(text(b"\xef\xbb\xbf{}".to_vec(), "m/a.json").unwrap(), b"{}");
        for good in ["{}", "version 1", "{% if <html> %}", "<h"] {
            assert_eq!(text(good.into(), "m/a.jinja").unwrap(), good.as_bytes());
        }
        let error = refuse_text(b"Entry not found", "m/w", "weights").unwrap_err().to_string();
        let expected = "m/w: content: found a text that begins with \"Entry not found\", expected weights: fetch the file anew";
        assert_eq!(error, expected);
        assert!(refuse_text(&[1, 2, 0], "m/w", "weights").is_ok());
    }
}
