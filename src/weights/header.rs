//! The header of a safetensors file: which tensors it holds, of what type and shape, and where.
//!
//! ```text
//! 8 bytes   length n of the header, little-endian
//! n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//! …         the tensors' bytes; offsets count from here
//! ```
//!
//! Read as a stream, so that a browser needs the header alone before it decides on the rest. (The safetensors
//! crate's own reader wants the whole file.) Its rules hold here, with caps of our own on top.

use super::reader::Reader;
use super::{quote, stand_in};
use crate::{Error, Result};
use safetensors::Dtype as Stored;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// What a file of weights is, for messages.
const WEIGHTS: &str = "a safetensors file";
/// The longest header that is read. JetMoE-8B's is 30 kB.
pub(crate) const MAX_HEADER: u64 = 16 << 20;
/// The most tensors in a checkpoint.
pub(crate) const MAX_TENSORS: usize = 65_536;
/// The most dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 8;
/// The longest tensor name, in bytes.
pub(crate) const MAX_NAME: usize = 512;

/// One tensor of a checkpoint. Offset, length, shape and type have been checked against each other and,
/// where the file's length is known, against the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Which of the checkpoint's files holds it.
    pub file: usize,
    /// Its element type in the file; not every one can be read as weights.
    pub stored: Stored,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Where its bytes start, counted from the start of the file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Whether the file has it in quantised form only: a shape, no bytes.
    pub quantized: bool,
}

impl TensorInfo {
    /// Values in the tensor. The header's reader has checked the product.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Values in a row: the last dimension, or all but the first of a convolution's four. A single number is a row.
    pub(crate) fn row_width(&self) -> usize {
        match self.shape.as_slice() {
            [_, input, height, width] => input * height * width,
            shape => shape.last().copied().unwrap_or(1),
        }
    }
}

/// Reads a file's header. Tensors come in the order of their bytes and cover the rest of the file exactly.
pub(crate) async fn read(reader: &mut Reader<'_>, file: usize) -> Result<Vec<TensorInfo>> {
    let first = reader.read_at_most(8).await?;
    stand_in::refuse(&first, reader.path(), WEIGHTS)?;
    let Some(length) = first.first_chunk().map(|&length| u64::from_le_bytes(length)) else {
        let found = format!("the end of the file after {} bytes", first.len());
        return Err(Error::bad_file(reader.path(), "header length", found, "8 bytes"));
    };
    let left = reader.len().map_or(u64::MAX, |len| len.saturating_sub(8));
    if length > MAX_HEADER.min(left) {
        // Text has no lengths.
        let rest = reader.read_at_most(stand_in::HEAD - 8).await?;
        stand_in::refuse_text(&[first, rest].concat(), reader.path(), WEIGHTS)?;
        let expected = match length > left {
            true => format!("at most the {left} bytes that follow"),
            false => format!("at most {MAX_HEADER}"),
        };
        return Err(Error::bad_file(reader.path(), "header length", length, expected));
    }
    let json = reader.read_vec(length as usize, "header").await?;
    let tensors = place(parse(&json, reader.path())?, reader.path(), file, 8 + length)?;
    if let Some(len) = reader.len() {
        check_end(&tensors, reader.path(), 8 + length, len)?;
    }
    Ok(tensors)
}

/// A header entry as the file states it.
struct Entry {
    name: String,
    stored: Stored,
    shape: Shape,
    range: (u64, u64),
}

fn parse(json: &[u8], path: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut current = None;
    let mut json = serde_json::Deserializer::from_slice(json);
    let visitor = Entries { entries: &mut entries, current: &mut current };
    let parsed = de::Deserializer::deserialize_map(&mut json, visitor).and_then(|()| json.end());
    match parsed {
        Ok(()) => Ok(entries),
        Err(e) => {
            let field = match current {
                Some(name) => format!("header of tensor {}", quote(&name)),
                None => "header".to_owned(),
            };
            let mut found = e.to_string();
            found.truncate(found.floor_char_boundary(300));
            let expected = format!(
                "JSON with dtype, shape and data_offsets for each of at most {MAX_TENSORS} tensors, \
                 names of at most {MAX_NAME} bytes and at most {MAX_RANK} dimensions"
            );
            Err(Error::bad_file(path, field, found, expected))
        }
    }
}

/// Checks each entry alone and all together: sorted by offset they follow each other without gap or overlap.
fn place(mut entries: Vec<Entry>, path: &str, file: usize, data_start: u64) -> Result<Vec<TensorInfo>> {
    entries.sort_by_key(|e| e.range);
    let mut names = HashSet::new();
    let mut end = 0;
    for Entry { name, stored, shape: Shape(shape), range: (from, to) } in &entries {
        let bad = |field: &str, found: String, expected: String| {
            Err(Error::bad_file(path, format!("tensor {}, {field}", quote(name)), found, expected))
        };
        if !names.insert(name) {
            return bad("name", "two tensors of this name".into(), "one".into());
        }
        if *from != end || to < from {
            let found = format!("[{from}, {to}]");
            return bad(
                "data_offsets",
                found,
                format!("a range that starts at {end}, where the last one ends"),
            );
        }
        match byte_length(shape, *stored) {
            Some(bytes) if bytes == to - from => {}
            Some(bytes) => {
                let found = format!("a range of {} bytes", to - from);
                return bad("data_offsets", found, format!("{bytes}, for {stored} {shape:?}"));
            }
            None => {
                return bad(
                    "shape",
                    format!("{stored} {shape:?}"),
                    "a whole number of bytes below 2^61".into(),
                );
            }
        }
        end = *to;
    }
    if end.checked_add(data_start).is_none() {
        return Err(Error::bad_file(path, "header", format!("data of {end} bytes"), "a possible file"));
    }
    let info = |Entry { name, stored, shape: Shape(shape), range: (from, to) }| {
        let shape = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| {
            let field = format!("tensor {}, shape", quote(&name));
            Error::bad_file(path, field, format!("{shape:?}"), "dimensions that this machine can count")
        })?;
        Ok(TensorInfo {
            name,
            file,
            stored,
            shape,
            offset: data_start + from,
            bytes: to - from,
            quantized: false,
        })
    };
    entries.into_iter().map(info).collect()
}

/// The data must end exactly where the file ends.
fn check_end(tensors: &[TensorInfo], path: &str, data_start: u64, len: u64) -> Result<()> {
    if let Some(cut) = tensors.iter().find(|t| t.offset + t.bytes > len) {
        let (field, end) = (format!("tensor {}", quote(&cut.name)), cut.offset + cut.bytes);
        return Err(Error::bad_file(
            path,
            field,
            format!("a file of {len} bytes"),
            format!("at least {end}"),
        ));
    }
    let end = tensors.last().map_or(data_start, |t| t.offset + t.bytes);
    match end == len {
        true => Ok(()),
        false => Err(Error::bad_file(path, "file length", len, format!("{end}, where the last tensor ends"))),
    }
}

/// Bytes of a tensor, if they are a whole number that no file position overflows.
pub(super) fn byte_length(shape: &[u64], stored: Stored) -> Option<u64> {
    // The product of the dimensions that are not zero, so that a zero cannot hide an overflow.
    let elements = shape.iter().filter(|&&d| d > 0).try_fold(1u64, |n, &d| n.checked_mul(d))?;
    let bits = elements.checked_mul(stored.bitsize() as u64)?;
    match shape.contains(&0) {
        true => Some(0),
        false => bits.is_multiple_of(8).then_some(bits / 8),
    }
}

// -- JSON ------------------------------------------------------------------------------------------

/// Collects entries and remembers which one is being read, for the error message.
struct Entries<'a> {
    entries: &'a mut Vec<Entry>,
    current: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        struct Fields {
            dtype: String,
            shape: Shape,
            data_offsets: (u64, u64),
        }
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            *self.current = Some(name.clone());
            if self.entries.len() == MAX_TENSORS {
                return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if name.len() > MAX_NAME {
                return Err(de::Error::custom(format!("a name of {} bytes", name.len())));
            }
            let fields: Fields = map.next_value()?;
            let dtype: de::value::StrDeserializer<'_, A::Error> = fields.dtype.as_str().into_deserializer();
            let stored = Stored::deserialize(dtype)
                .map_err(|_| de::Error::custom(format!("the unknown dtype {}", quote(&fields.dtype))))?;
            self.entries.push(Entry { name, stored, shape: fields.shape, range: fields.data_offsets });
            *self.current = None;
        }
        Ok(())
    }
}

/// At most [`MAX_RANK`] dimensions; a longer list ends the parse before it takes memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = list.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(de::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::weights::Source;
    use pollster::block_on;

    fn header(json: &str, data: usize) -> Result<Vec<TensorInfo>> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        let source = Source::memory("m", vec![("x", bytes)]);
        block_on(async { read(&mut source.open("x").await?, 3).await })
    }

    #[track_caller]
    fn refused(json: &str, data: usize, parts: &[&str]) {
        let error = header(json, data).unwrap_err().to_string();
        assert!(error.starts_with("m/x: ") && error.len() < 1000, "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    }

    #[test]
    fn a_good_header_gives_absolute_places_in_file_order() {
        let json = r#"{"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},
            "__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}  "#;
        let tensors = header(json, 30).unwrap();
        let start = 8 + json.len() as u64;
        let a = TensorInfo {
            name: "a".into(),
            file: 3,
            stored: Stored::F32,
            shape: vec![2, 3],
            offset: start,
            bytes: 24,
            quantized: false,
        };
        assert_eq!(tensors[0], a);
        assert_eq!((tensors[1].name.as_str(), tensors[1].offset, tensors[1].bytes), ("b", start + 24, 6));
        assert_eq!(header("{}", 0).unwrap(), []);
    }

    #[test]
    fn ranges_must_follow_each_other() {
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},
                    "b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        header(&two("[0,4]", "[4,8]"), 8).unwrap();
        refused(&two("[0,4]", "[2,6]"), 8, &["\"b\"", "data_offsets", "[2, 6]", "starts at 4"]);
        refused(&two("[0,4]", "[5,9]"), 9, &["\"b\"", "[5, 9]"]);
        refused(&two("[1,5]", "[5,9]"), 9, &["\"a\"", "[1, 5]", "starts at 0"]);
        refused(&two("[0,4]", "[4,0]"), 8, &["\"b\"", "[4, 0]"]);
        refused(&two("[0,4]", "[4,8]"), 7, &["tensor \"b\"", "a file of"]);
        refused(&two("[0,4]", "[4,8]"), 9, &["file length", "where the last tensor ends"]);
        refused(&two("[0,5]", "[5,8]"), 8, &["\"a\"", "a range of 5 bytes", "4, for U8 [4]"]);
        refused(&two("[0,4]", "[4]"), 8, &["\"b\""]);
        refused(&two("[0,4]", "[-4,8]"), 8, &["\"b\""]);
    }

    #[test]
    fn products_that_overflow_are_refused_even_beside_a_zero() {
        let one = |shape: &str, end: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        refused(&one("[4294967296,4294967296]", "0"), 0, &["\"a\"", "shape"]);
        refused(&one("[0,4294967296,4294967296]", "0"), 0, &["\"a\"", "shape"]);
        refused(&one("[4611686018427387904]", "0"), 0, &["\"a\"", "shape"]);
        refused(&one("[18446744073709551616]", "0"), 0, &["\"a\""]);
        refused(&one("[288230376151711744]", "1152921504606846976"), 0, &["\"a\"", "a file of"]);
        // Each is possible, the sum is not.
        let (size, mut entries) = ((1u64 << 61) - 1, Vec::new());
        for i in 0..8 {
            let (from, to) = (i * size, (i + 1) * size);
            entries.push(format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#));
        }
        refused(&format!("{{{}}}", entries.join(",")), 0, &["possible file"]);
        refused(&one("[1,1,1,1,1,1,1,1,1]", "4"), 4, &["\"a\"", "more than 8 dimensions"]);
        header(&one("[1,1,1,1,1,1,1,1]", "4"), 4).unwrap();
        header(&one("[]", "4"), 4).unwrap();
    }

    #[test]
    fn types_names_and_duplicates_are_checked() {
        let one = |name: &str, dtype: &str, shape: &str, end: usize| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}"#)
        };
        refused(&format!("{{{}}}", one("a", "F99", "[1]", 4)), 4, &["\"a\"", "unknown dtype \"F99\""]);
        refused(&format!("{{{}}}", one("a", "F4", "[1]", 1)), 1, &["\"a\"", "whole number"]);
        refused(&format!("{{{}}}", one(&"n".repeat(513), "U8", "[1]", 1)), 1, &["a name of 513 bytes"]);
        header(&format!("{{{}}}", one("a", "I64", "[1]", 8)), 8).unwrap();
        let empty = one("a", "U8", "[0]", 0);
        header(&format!("{{{empty}}}"), 0).unwrap();
        refused(&format!("{{{empty},{empty}}}"), 0, &["two tensors of this name"]);
        let other = one("b", "U8", "[3,0]", 0);
        assert_eq!(header(&format!("{{{empty},{other}}}"), 0).unwrap().len(), 2);
    }

    #[test]
    fn text_that_is_not_a_header_is_refused() {
        for json in ["", "[]", "{", "null", "{} x", r#"{"a":1}"#, r#"{"a":{}}"#, r#"{"a":{"dtype":"F32"}}"#] {
            refused(json, 0, &["header"]);
        }
        refused(&format!(r#"{{"a":{}}}"#, "[".repeat(100_000)), 0, &["header"]);
        let nested = format!(r#"{{"__metadata__":{}}}"#, "[".repeat(1_000_000));
        refused(&nested, 0, &["header"]);
        let wordy = format!(r#"{{"a":{{"dtype":"{}","shape":[],"data_offsets":[0,4]}}}}"#, "é".repeat(5000));
        refused(&wordy, 4, &["unknown dtype"]);
    }

    #[test]
    fn lengths_are_compared_before_they_are_used() {
        for (length, data, part) in [
            (1u64 << 63, 10, "the 10 bytes that follow"),
            (u64::MAX, 10, "the 10 bytes that follow"),
            (MAX_HEADER + 1, MAX_HEADER as usize + 9, "at most 16777216"),
        ] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.resize(8 + data, b' ');
            let source = Source::memory("m", vec![("x", bytes)]);
            let read = async { read(&mut source.open("x").await?, 0).await };
            let error = block_on(read).unwrap_err().to_string();
            assert!(error.starts_with("m/x: header length: found") && error.contains(part), "{error}");
        }
    }
}
