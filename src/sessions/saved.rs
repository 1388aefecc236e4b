//! Sequences as bytes.
//!
//! All numbers are little-endian:
//!
//! | byte | what |
//! |---|---|
//! | 0 | `headwise` |
//! | 8 | u32: version of this format, 1 |
//! | 12 | u32: positions |
//! | 16 | u64: which model, by its sizes and the first bytes of each of its tensors |
//! | 24 | u32: how its weights are stored, 0 f32, 1 f16, 2 q8, 3 q4 |
//! | 28 | u32: how keys and values are stored, 0 f32, 1 f16 |
//! | 32 | u64: FNV-1a of all other bytes |
//! | 40 | keys and values, wherever the cache keeps them |
//!
//! That order is: layer by layer, the keys, then the values where these are others, each position by position, the heads of a
//! position in order, a head's channels padded with zeros to whole eights.

use crate::{
    Error, Result,
    ops::{CachePrecision, Precision},
    weights::Fingerprint,
};

const MAGIC: &[u8; 8] = b"headwise";
const VERSION: u32 = 1;
/// Where the checksum stands, and where keys and values start.
const CHECKSUM_AT: usize = 32;
const HEADER: usize = 40;

/// What a saved sequence fits to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Which model.
    pub model: u64,
    pub weights: Precision,
    pub cache: CachePrecision,
    /// Bytes of a position in all layers.
    pub position_bytes: u64,
}

impl Origin {
    fn fields(&self) -> ([u8; 8], [u8; 4], [u8; 4]) {
        let weights: u32 = match self.weights {
            Precision::F32 => 0,
            Precision::F16 => 1,
            Precision::Q8 => 2,
            Precision::Q4 => 3,
        };
        let cache: u32 = match self.cache {
            CachePrecision::F32 => 0,
            CachePrecision::F16 => 1,
        };
        (self.model.to_le_bytes(), weights.to_le_bytes(), cache.to_le_bytes())
    }

    /// The start of a saved sequence of so many positions, for [`seal`].
    pub fn header(&self, positions: u32) -> Vec<u8> {
        let (model, weights, cache) = self.fields();
        let positions = positions.to_le_bytes();
        [&MAGIC[..], &VERSION.to_le_bytes(), &positions, &model, &weights, &cache, &[0; 8]].concat()
    }

    /// The positions of a saved sequence, and its keys and values.
    ///
    /// # Errors
    /// [`Error::BadFile`], which names what is wrong: other bytes than [`seal`] left, another model, another precision, more
    /// than `most` positions.
    pub fn check<'a>(&self, saved: &'a [u8], most: u32) -> Result<(u32, &'a [u8])> {
        let bad = |field, found: String, expected: String| {
            Err(Error::bad_file("saved sequence", field, found, expected))
        };
        let Some((header, rest)) = saved.split_at_checked(HEADER) else {
            return bad("length", format!("{} bytes", saved.len()), format!("at least {HEADER}"));
        };
        let (model, weights, cache) = self.fields();
        let shown = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        if header[..8] != MAGIC[..] {
            return bad("start", header[..8].escape_ascii().to_string(), "headwise".to_owned());
        }
        for (field, at, expected) in [
            ("version", 8..12, &VERSION.to_le_bytes()[..]),
            ("model", 16..24, &model),
            ("precision of the weights", 24..28, &weights),
            ("precision of the cache", 28..32, &cache),
        ] {
            if header[at.clone()] != *expected {
                return bad(field, shown(&header[at]), format!("{} as in this session", shown(expected)));
            }
        }
        let positions = header[12..16].iter().rev().fold(0, |n, &byte| n << 8 | u32::from(byte));
        if positions > most {
            return bad("positions", positions.to_string(), format!("at most the session's {most}"));
        }
        let length = u64::from(positions).checked_mul(self.position_bytes);
        if length != Some(rest.len() as u64) {
            let expected = format!("{positions} positions of {} bytes", self.position_bytes);
            return bad("length", format!("{} bytes of keys and values", rest.len()), expected);
        }
        let sum = checksum(saved);
        if header[CHECKSUM_AT..] != sum {
            return bad("checksum", shown(&header[CHECKSUM_AT..]), shown(&sum));
        }
        Ok((positions, rest))
    }
}

/// Writes the checksum into a header with all keys and values behind it.
pub(super) fn seal(saved: &mut [u8]) {
    let sum = checksum(saved);
    saved[CHECKSUM_AT..HEADER].copy_from_slice(&sum);
}

fn checksum(saved: &[u8]) -> [u8; 8] {
    Fingerprint::new().with(&saved[..CHECKSUM_AT]).with(&saved[HEADER..]).value().to_le_bytes()
}

/// Checks bytes as a session would that has 64 positions of 16 bytes each, for [`crate::fuzzing`].
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn check_any(saved: &[u8]) -> Result<()> {
    ANY.check(saved, 64).map(drop)
}

#[cfg(not(target_arch = "wasm32"))]
const ANY: Origin = Origin {
    model: 0x0102_0304_0506_0708,
    weights: Precision::Q4,
    cache: CachePrecision::F16,
    position_bytes: 16,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(positions: u32) -> Vec<u8> {
        let mut saved = ANY.header(positions);
        saved.extend((0..16 * positions).map(|i| i as u8));
        seal(&mut saved);
        saved
    }

    #[test]
    fn a_header_is_what_the_table_says() {
        let saved = saved(3);
        let fields = [
            &b"headwise"[..],
            &[1, 0, 0, 0, 3, 0, 0, 0],
            &[8, 7, 6, 5, 4, 3, 2, 1],
            &[3, 0, 0, 0, 1, 0, 0, 0],
        ];
        assert_eq!(saved[..32], fields.concat());
        assert_eq!(ANY.check(&saved, 3).unwrap(), (3, &saved[40..]));
        assert!(ANY.check(&saved, 2).is_err());
    }

    /// Bytes that say more than there are, in numbers of any size, behind a checksum that is right.
    #[test]
    fn nothing_but_what_was_sealed_passes_and_nothing_panics() {
        let good = saved(3);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut tried = 0;
        while tried < 20_000 {
            let mut bytes = good.clone();
            for _ in 0..=next() % 3 {
                let at = next() % bytes.len();
                match next() % 4 {
                    0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next() % 5],
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.extend_from_slice(&good[at.min(good.len())..]),
                    // A number of positions.
                    _ => bytes.iter_mut().skip(12).take(4).for_each(|byte| *byte = next() as u8),
                }
            }
            if bytes == good {
                continue;
            }
            let damaged = ANY.check(&bytes, 64).map(drop);
            assert!(matches!(damaged, Err(Error::BadFile { .. })), "{bytes:?}");
            if bytes.len() > HEADER {
                seal(&mut bytes);
                // Whatever passes now is as long as it says.
                if let Ok((positions, rest)) = ANY.check(&bytes, 64) {
                    assert!(positions <= 64 && rest.len() == 16 * positions as usize);
                }
            }
            tried += 1;
        }
    }
}
