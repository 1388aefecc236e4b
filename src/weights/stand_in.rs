//! What people have in the place of a file: a Git LFS pointer, a web page, a server's excuse, nothing at all.

use super::quote;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// How a pointer begins, in Git LFS and in what it was called before.
const POINTERS: [&[u8]; 3] = [
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
    b"version http://git-media.io/v/",
];
/// The bytes of a file that show what it is.
pub(super) const HEAD: usize = 512;
/// The tags with which a web page may begin.
const PAGE_TAGS: [&str; 4] = ["!doctype html", "html", "head", "body"];
/// The keys of a server's answer that says why it has no file; one of the first four is in each.
const EXCUSES: [&str; 4] = ["error", "message", "detail", "msg"];
const BESIDE_EXCUSES: [&str; 9] = [
    "code",
    "status",
    "statusCode",
    "status_code",
    "success",
    "path",
    "timestamp",
    "request_id",
    "documentation_url",
];
/// The longest answer that is taken for an excuse.
const MAX_EXCUSE: usize = 4096;
/// As UTF-8, and as UTF-16 in either order.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// The text of a small file: its bytes without a byte order mark.
///
/// # Errors
/// What is no such file but stands in its place; text in UTF-16.
pub(crate) fn text(mut bytes: Vec<u8>, path: &str) -> Result<Vec<u8>> {
    let expected = if path.ends_with(".json") { "JSON" } else { "text" };
    refuse(&bytes, path, expected)?;
    let [utf8, utf16 @ ..] = BYTE_ORDER_MARKS;
    if utf16.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(Error::bad_file(path, "content", "text in UTF-16", format!("{expected} in UTF-8")));
    }
    if bytes.starts_with(utf8) {
        bytes.drain(..utf8.len());
    }
    match excuse(&bytes) {
        None => Ok(bytes),
        Some(excuse) => {
            let found = format!("a server's answer in its place, {}", quote(&excuse));
            Err(Error::bad_file(path, "content", found, format!("{expected}: fetch the file anew")))
        }
    }
}

/// Refuses a file that is empty, a Git LFS pointer or a web page; `head` is how it begins.
pub(super) fn refuse(head: &[u8], path: &str, expected: &str) -> Result<()> {
    let (found, instead) = if head.is_empty() {
        ("an empty file", format!("{expected}: fetch the file anew"))
    } else if POINTERS.iter().any(|pointer| content(head).starts_with(pointer)) {
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
    match is_readable(content(head)) {
        true => {
            Err(Error::bad_file(path, "content", begins(head), format!("{expected}: fetch the file anew")))
        }
        false => Ok(()),
    }
}

/// A text by its first words.
pub(super) fn begins(text: &[u8]) -> String {
    let text = content(text);
    let start = String::from_utf8_lossy(&text[..text.len().min(HEAD)]);
    let start: String = start.chars().take(40).collect();
    format!("a text that begins with {}", quote(&start))
}

/// What is left without a byte order mark and empty lines before the first word.
fn content(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARKS[0]).unwrap_or(bytes).trim_ascii_start()
}

/// Whether it is text, which may end amid a character.
fn is_readable(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    text.chars().all(|char| !char.is_control() || char.is_ascii_whitespace())
}

fn is_page(head: &[u8]) -> bool {
    let head = without_prologue(content(head));
    PAGE_TAGS.iter().any(|tag| begins_with_tag(head, tag))
}

/// Without the comments and declarations that may stand before the first tag.
fn without_prologue(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        let end: &[u8] = match text {
            [b'<', b'!', b'-', b'-', ..] => b"-->",
            [b'<', b'?', ..] => b"?>",
            _ => return text,
        };
        let at = text.windows(end.len()).position(|window| window == end);
        text = at.map_or(&[], |at| &text[at + end.len()..]);
    }
}

fn begins_with_tag(text: &[u8], tag: &str) -> bool {
    let Some((name, rest)) = text.strip_prefix(b"<").and_then(|text| text.split_at_checked(tag.len())) else {
        return false;
    };
    let ends = rest.first().is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    name.eq_ignore_ascii_case(tag.as_bytes()) && ends
}

/// What a server says, in JSON or in XML, that has no file to give.
fn excuse(text: &[u8]) -> Option<String> {
    let text = content(text);
    if text.len() > MAX_EXCUSE {
        return None;
    }
    if text.starts_with(b"<?xml") {
        let rest = without_prologue(text);
        return begins_with_tag(rest, "Error").then(|| String::from_utf8_lossy(rest).into_owned());
    }
    let answer: Map<String, Value> = serde_json::from_slice(text).ok()?;
    let known = |key: &str| EXCUSES.contains(&key) || BESIDE_EXCUSES.contains(&key);
    let said = EXCUSES.iter().find_map(|key| answer.get(*key))?;
    answer.keys().all(|key| known(key)).then(|| said.as_str().map_or_else(|| said.to_string(), str::to_owned))
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
            ("\u{feff}version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
            ("\r\n version https://hawser.github.com/spec/v1\n", "found a Git LFS pointer"),
            ("<!-- saved -->\n<!-- > --><html>", "a web page"),
            ("<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"\">", "a web page"),
            ("<head>", "a web page"),
            ("\n<BODY class=a", "a web page"),
            (
                r#" {"error": "Repository not found"}"#,
                "m/a.json: content: found a server's answer in its place, \"Repository not found\", expected JSON: fetch",
            ),
            (r#"{"message": "Not Found", "documentation_url": "x", "status": "404"}"#, ", \"Not Found\", "),
            (r#"{"error": {"code": 404}}"#, r#"place, "{\"code\":404}", expected"#),
            ("<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code>", "place, \"<Error><Code>NoSuchKey"),
        ] {
            let error = text(bytes.into(), "m/a.json").unwrap_err().to_string();
            assert!(error.contains(part), "{error} should say {part}");
        }
        for utf16 in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}"] {
            let error = text(utf16.to_vec(), "m/a.json").unwrap_err().to_string();
            assert_eq!(error, "m/a.json: content: found text in UTF-16, expected JSON in UTF-8");
        }
        assert_eq!(text(b"\xef\xbb\xbf{}".to_vec(), "m/a.json").unwrap(), b"{}");
        for good in [
            "{}",
            "version 1",
            "{% if <html> %}",
            "<h",
            "<header>",
            "<!-- a --> {{ a }}",
            "<!-- ",
            "<?",
            r#"{"status": 1}"#,
            r#"{"error": 1, "eos_token_id": 2}"#,
        ] {
            assert_eq!(text(good.into(), "m/a.jinja").unwrap(), good.as_bytes());
        }
        let error = refuse_text(b"Entry not found", "m/w", "weights").unwrap_err().to_string();
        let expected = "m/w: content: found a text that begins with \"Entry not found\", expected weights: fetch the file anew";
        assert_eq!(error, expected);
        for text in ["\u{feff}non trouv\u{e9}".as_bytes(), b"\n\xe6\xbc"] {
            assert!(refuse_text(text, "m/w", "weights").is_err());
        }
        for bytes in [&[1, 2, 0][..], b"a\0\0\0\0\0\0\0{", b"a\xff\xff\xffaaaa"] {
            assert!(refuse_text(bytes, "m/w", "weights").is_ok());
        }
    }
}
