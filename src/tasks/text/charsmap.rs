//! The table of a `Precompiled` normalizer, checked before the library that uses it is given it.
//!
//! In base64: the length of a trie in bytes (u32), the trie, and texts that end with a zero byte. The trie is a double
//! array of u32 (Darts): from a place `p` with an offset, byte `b` leads to the unit at `p ^ b` if its label is `b`; a unit
//! with a leaf has, at its own place, where in the texts its replacement begins.

use std::collections::VecDeque;

/// The most bytes of one replacement: Unicode's own longest has 33.
const MAX_REPLACEMENT: usize = 256;

/// Checks a table and says how many times as long as what it finds a replacement is, at the most.
pub fn check(base64: &str) -> Result<usize, String> {
    let bytes = decode(base64).ok_or("no base64")?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("too short to hold a table")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, texts) = rest
        .split_at_checked(length)
        .filter(|_| length >= 4 && length.is_multiple_of(4))
        .ok_or_else(|| format!("a trie of {length} bytes in {}", rest.len()))?;
    let trie: Vec<u32> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| "replacements that are not UTF-8")?;
    walk(&trie, texts)
}

/// Goes wherever some text may lead.
fn walk(trie: &[u32], texts: &str) -> Result<usize, String> {
    let mut seen = vec![false; trie.len()];
    // The nearest first: the depth of a place is then that of the shortest text that leads there.
    let mut open = VecDeque::from([(offset(trie[0]), 0)]);
    let (mut longest, mut growth) = (0, 1);
    while let Some((place, depth)) = open.pop_front() {
        // Whatever the next byte, its unit must exist.
        if place | 0xff >= trie.len() {
            return Err(format!("a trie of {} units that leads to unit {}", trie.len(), place | 0xff));
        }
        if std::mem::replace(&mut seen[place], true) {
            continue;
        }
        for byte in 1..=255 {
            let at = place ^ byte;
            let unit = trie[at];
            if unit & 0x8000_00ff != byte as u32 {
                continue;
            }
            let next = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = trie.get(next).map(|leaf| (leaf & 0x7fff_ffff) as usize);
                let text = leaf.and_then(|begin| texts.get(begin..));
                let text = text.ok_or("a replacement that begins outside the texts")?;
                let length = text.find('\0').unwrap_or(text.len());
                longest = longest.max(length);
                growth = growth.max(length.div_ceil(depth + 1));
            }
            open.push_back((next, depth + 1));
        }
    }
    if longest > MAX_REPLACEMENT {
        return Err(format!("a replacement of {longest} bytes, more than {MAX_REPLACEMENT}"));
    }
    Ok(growth)
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

/// Base64 in its strict form: whole groups, padded, nothing left over.
fn decode(text: &str) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.as_bytes();
    let padding = text.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let last = text.len() / 4;
    for (index, group) in text.chunks_exact(4).enumerate() {
        let missing = if index + 1 == last { padding } else { 0 };
        let mut bits = 0u32;
        for (place, byte) in group.iter().enumerate() {
            let value = if place >= 4 - missing { 0 } else { value(*byte)? };
            bits = bits << 6 | u32::from(value);
        }
        let group = &bits.to_be_bytes()[1..];
        let (kept, dropped) = group.split_at(3 - missing);
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}
