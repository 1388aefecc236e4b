//! Tensors' bytes as a stream of row blocks, through one buffer.

use super::header::TensorInfo;
use super::reader::Reader;
use super::{Checkpoint, Dtype, Loss, Source, quote};
use crate::{Error, Result};

/// The size of a chunk, unless one row is longer.
const CHUNK: u64 = 4 << 20;
/// The longest row: the largest width that any family accepts, in f32.
const MAX_ROW: u64 = 4 << 24;

/// Some rows of one tensor.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    /// The tensor.
    pub tensor: &'a TensorInfo,
    /// The path or address of its file.
    pub file: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// The first of the rows. Rows are counted over the whole tensor.
    pub first_row: u64,
    /// How many rows.
    pub rows: u64,
    /// Their bytes, little-endian as in the file.
    pub bytes: &'a [u8],
}

impl Chunk<'_> {
    /// Values in a row.
    pub(crate) fn width(&self) -> usize {
        self.tensor.row_width()
    }

    /// The values as f32, exactly. Replaces the content of `out`.
    pub(crate) fn to_f32(&self, out: &mut Vec<f32>) {
        self.dtype.to_f32(self.bytes, out);
    }

    /// The values as f16 bits; one that f16 cannot hold is an error. Replaces the content of `out`, and adds to `loss`
    /// what small values lose.
    pub(crate) fn to_f16(&self, out: &mut Vec<u16>, loss: &mut Loss) -> Result<()> {
        self.dtype.to_f16(self.bytes, self.width(), out, loss).map_err(|value| {
            let expected = "magnitudes below 65520 for f16 storage (`--precision f32` keeps this value)";
            Error::bad_file(self.file, format!("tensor {}", quote(&self.tensor.name)), value, expected)
        })
    }

    /// Whether these are the tensor's last rows.
    pub(crate) fn is_last(&self) -> bool {
        self.first_row + self.rows == rows(self.tensor)
    }

    /// Refuses NaN and infinity: one spoils every token that it meets, and in a router it sends them to experts at
    /// random without anything looking wrong.
    fn check_finite(&self) -> Result<()> {
        let Some(at) = self.dtype.first_not_finite(self.bytes) else { return Ok(()) };
        let mut value = Vec::new();
        self.dtype.to_f32(&self.bytes[at * self.dtype.size()..][..self.dtype.size()], &mut value);
        let element = self.first_row * self.width() as u64 + at as u64;
        let found = format!("{} at element {element}", value.first().unwrap_or(&f32::NAN));
        Err(Error::bad_file(
            self.file,
            format!("tensor {}", quote(&self.tensor.name)),
            found,
            "finite numbers",
        ))
    }
}

/// Reads tensors file by file and front to back, and sees that all their numbers are finite. Host memory does not depend
/// on the tensors' sizes.
pub(crate) struct TensorStream<'a> {
    checkpoint: &'a Checkpoint,
    source: &'a Source,
    /// What is still to come; the next tensor last.
    wanted: Vec<&'a TensorInfo>,
    row: u64,
    open: Option<(usize, Reader<'a>)>,
    buffer: Vec<u8>,
}

impl<'a> TensorStream<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        source: &'a Source,
        mut wanted: Vec<&'a TensorInfo>,
    ) -> TensorStream<'a> {
        wanted.sort_by_key(|t| std::cmp::Reverse((t.file, t.offset, t.bytes)));
        wanted.dedup_by_key(|t| (t.file, t.offset, t.bytes));
        TensorStream { checkpoint, source, wanted, row: 0, open: None, buffer: Vec::new() }
    }

    /// The next rows, or `None` after the last tensor. A tensor without elements has no rows.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk<'_>>> {
        while let Some(&tensor) = self.wanted.last() {
            if self.row < rows(tensor) {
                return self.rows_of(tensor).await.map(Some);
            }
            self.wanted.pop();
            self.row = 0;
        }
        self.open = None;
        Ok(None)
    }

    async fn rows_of(&mut self, tensor: &'a TensorInfo) -> Result<Chunk<'_>> {
        let dtype = self.checkpoint.dtype(tensor)?;
        let file = self.checkpoint.path(tensor);
        let row_bytes = tensor.bytes / rows(tensor);
        if row_bytes > MAX_ROW {
            let field = format!("tensor {}, bytes of a row", quote(&tensor.name));
            return Err(Error::bad_file(file, field, row_bytes, format!("at most {MAX_ROW}")));
        }
        let what = format!("tensor {}", quote(&tensor.name));
        let first_row = self.row;
        let count = (CHUNK / row_bytes).max(1).min(rows(tensor) - first_row);
        // Both products are at most `tensor.bytes`, and `length` at most CHUNK or MAX_ROW.
        let (start, length) = (tensor.offset + first_row * row_bytes, (count * row_bytes) as usize);

        let reader = match &mut self.open {
            Some((open, reader)) if *open == tensor.file && reader.position() <= start => reader,
            place => {
                // Closes the last file before the next one opens.
                *place = None;
                let reader = self.source.open(self.checkpoint.file(tensor)).await?;
                &mut place.insert((tensor.file, reader)).1
            }
        };
        reader.skip(start - reader.position(), &what).await?;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let bytes = &mut self.buffer[..length];
        reader.read_exact(bytes, &what).await?;
        self.row += count;
        let chunk = Chunk { tensor, file, dtype, first_row, rows: count, bytes };
        chunk.check_finite()?;
        Ok(chunk)
    }
}

/// A tensor's rows.
fn rows(tensor: &TensorInfo) -> u64 {
    // Both are parts of a product that the header's check has computed.
    tensor.elements().checked_div(tensor.row_width() as u64).unwrap_or(0)
}

/// What needs the tensors' bytes.
impl Checkpoint {
    /// Whether two tensors are the same to the last byte.
    pub(crate) async fn alike(&self, source: &Source, one: &TensorInfo, other: &TensorInfo) -> Result<bool> {
        let without_bytes = one.quantized || other.quantized;
        if without_bytes || (one.stored, &one.shape) != (other.stored, &other.shape) {
            return Ok(false);
        }
        Ok(self.first_difference(source, one, other).await?.is_none())
    }

    /// The first rows in which two tensors of one type and shape differ.
    pub(crate) async fn first_difference(
        &self,
        source: &Source,
        one: &TensorInfo,
        other: &TensorInfo,
    ) -> Result<Option<(u64, u64)>> {
        let mut ones = self.stream(source, vec![one]);
        let mut others = self.stream(source, vec![other]);
        // Shape and type are the same, so the chunks are.
        while let (Some(a), Some(b)) = (ones.next().await?, others.next().await?) {
            if a.bytes != b.bytes {
                return Ok(Some((b.first_row, b.first_row + b.rows - 1)));
            }
        }
        Ok(None)
    }

    /// Streams the bytes of some of this checkpoint's tensors, in the order in which the files hold them.
    pub(crate) fn stream<'a>(&'a self, source: &'a Source, wanted: Vec<&'a TensorInfo>) -> TensorStream<'a> {
        TensorStream::new(self, source, wanted)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::weights::testing::file;
    use pollster::block_on;

    /// Bytes of finite numbers, whatever the type.
    fn counting(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i % 113) as u8).collect()
    }

    type Seen = (String, u64, u64, Vec<u8>);

    async fn collect(source: &Source, names: &[&str]) -> Result<Vec<Seen>> {
        let checkpoint = Checkpoint::open(source).await?;
        let wanted = names.iter().map(|n| checkpoint.tensor(n).unwrap()).collect();
        let mut stream = checkpoint.stream(source, wanted);
        let mut seen = Vec::new();
        while let Some(c) = stream.next().await? {
            assert!(c.first_row + c.rows <= rows(c.tensor));
            seen.push((c.tensor.name.clone(), c.first_row, c.rows, c.bytes.to_vec()));
        }
        Ok(seen)
    }

    #[test]
    fn files_and_offsets_are_visited_in_order_and_the_rest_is_skipped() {
        let one = file(&[
            ("a", "F16", &[2, 3], counting(12)),
            ("b", "I64", &[5], counting(40)),
            ("c", "F32", &[], counting(4)),
        ]);
        let two = file(&[("d", "BF16", &[0, 4], vec![]), ("e", "BF16", &[4], counting(8))]);
        let index = r#"{"weight_map":{"e":"2.safetensors","d":"2.safetensors","a":"1.safetensors","b":"1.safetensors","c":"1.safetensors"}}"#;
        let source = Source::memory(
            "m",
            vec![
                ("1.safetensors", one),
                ("2.safetensors", two),
                ("model.safetensors.index.json", index.as_bytes().to_vec()),
            ],
        );
        let seen = block_on(collect(&source, &["e", "d", "c", "a", "a"])).unwrap();
        let expected: Vec<Seen> = vec![
            ("a".into(), 0, 2, counting(12)),
            ("c".into(), 0, 1, counting(4)),
            ("e".into(), 0, 1, counting(8)),
        ];
        assert_eq!(seen, expected);
        let error = block_on(collect(&source, &["a", "b"])).unwrap_err().to_string();
        assert!(error.contains("m/1.safetensors: tensor \"b\", dtype: found I64"), "{error}");
    }

    #[test]
    fn large_tensors_come_in_whole_rows_through_a_small_buffer() {
        let (wide, tall) = (counting(3 * (5 << 20)), counting(7000 * 1000));
        let model = file(&[
            ("wide", "F32", &[3, 5 << 18], wide.clone()),
            ("tall", "F16", &[70, 100, 500], tall.clone()),
        ]);
        let source = Source::memory("m", vec![("model.safetensors", model)]);
        let seen = block_on(collect(&source, &["wide", "tall"])).unwrap();
        let shape: Vec<_> =
            seen.iter().map(|(n, first, rows, b)| (n.as_str(), *first, *rows, b.len())).collect();
        assert_eq!(
            shape,
            [
                ("wide", 0, 1, 5 << 20),
                ("wide", 1, 1, 5 << 20),
                ("wide", 2, 1, 5 << 20),
                ("tall", 0, 4194, 4_194_000),
                ("tall", 4194, 2806, 2_806_000),
            ]
        );
        let bytes = |name| seen.iter().filter(|s| s.0 == name).flat_map(|s| s.3.clone()).collect::<Vec<_>>();
        assert!(bytes("wide") == wide && bytes("tall") == tall);
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let folder = std::env::temp_dir().join(format!("headwise-shrinks-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.safetensors");
        std::fs::write(&path, file(&[("a", "F32", &[100], counting(400))])).unwrap();
        let source = Source::folder(&folder);
        let error = block_on(async {
            let checkpoint = Checkpoint::open(&source).await.unwrap();
            let mut stream = checkpoint.stream(&source, checkpoint.tensors().collect());
            std::fs::File::options().write(true).open(&path).unwrap().set_len(200).unwrap();
            stream.next().await.unwrap_err().to_string()
        });
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(error.contains("model.safetensors: tensor \"a\": found the end"), "{error}");
    }
}
