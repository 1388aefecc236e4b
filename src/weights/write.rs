//! Writing a safetensors file: whole or not at all.

use super::header::byte_length;
use super::target::NewFile;
use crate::{Error, Result};
use safetensors::Dtype as Stored;
use safetensors::tensor::{Metadata, TensorInfo};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The values of a tensor to write.
#[derive(Debug, Clone)]
pub(crate) enum TensorData {
    /// Weights.
    F32(Vec<f32>),
    /// Indices, counters or packed bits.
    U32(Vec<u32>),
    /// Indices of which some may be none.
    I32(Vec<i32>),
}

impl TensorData {
    fn stored(&self) -> Stored {
        match self {
            TensorData::F32(_) => Stored::F32,
            TensorData::U32(_) => Stored::U32,
            TensorData::I32(_) => Stored::I32,
        }
    }

    fn len(&self) -> usize {
        match self {
            TensorData::F32(values) => values.len(),
            TensorData::U32(values) => values.len(),
            TensorData::I32(values) => values.len(),
        }
    }

    /// Gives the values' bytes to `out`, some at a time.
    fn write(&self, out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            TensorData::F32(values) => write_all(values, |v| v.to_le_bytes(), out),
            TensorData::U32(values) => write_all(values, |v| v.to_le_bytes(), out),
            TensorData::I32(values) => write_all(values, |v| v.to_le_bytes(), out),
        }
    }
}

fn write_all<T>(
    values: &[T],
    bytes: impl Fn(&T) -> [u8; 4],
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    values.chunks(1 << 16).try_for_each(|values| out(&values.iter().flat_map(&bytes).collect::<Vec<_>>()))
}

/// Writes tensors, each `(name, shape, values)`, to a safetensors file, in the given order.
///
/// As with [`NewFile`], the file is whole or not there.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, TensorData)]) -> Result<()> {
    let mut plans = Vec::with_capacity(tensors.len());
    for (name, shape, data) in tensors {
        if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(data.len()) {
            let (found, expected) = (data.len(), format!("as many as the shape {shape:?} has"));
            return Err(bad(path, format!("tensor {name}"), format!("{found} values"), expected));
        }
        plans.push(TensorPlan::new(name, data.stored(), shape));
    }
    let mut writer = SafetensorsWriter::create(path, &plans)?;
    for (name, _, data) in tensors {
        data.write(|bytes| writer.write(name, bytes))?;
    }
    writer.finish()
}

/// A tensor of a file that is to be written.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub stored: Stored,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Describes a tensor.
    pub(crate) fn new(name: impl Into<String>, stored: Stored, shape: &[usize]) -> Self {
        TensorPlan { name: name.into(), stored, shape: shape.to_vec() }
    }

    /// Its length in the file; `None` if that is no whole number or too large.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let shape: Vec<u64> = self.shape.iter().map(|&d| d as u64).collect();
        byte_length(&shape, self.stored).and_then(|bytes| usize::try_from(bytes).ok())
    }
}

/// Writes a safetensors file of which only the names, types and shapes are known beforehand: the tensors' bytes
/// come in order and in pieces of any size, and none is kept in memory.
///
/// As with [`NewFile`], the file appears under its name only once it is complete.
pub(crate) struct SafetensorsWriter {
    path: PathBuf,
    out: BufWriter<NewFile>,
    /// Names and missing bytes of the tensors that are not complete, the next one last.
    rest: Vec<(String, usize)>,
}

impl SafetensorsWriter {
    /// Creates the file and writes its header.
    pub(crate) fn create(path: &Path, tensors: &[TensorPlan]) -> Result<Self> {
        let header = header(path, tensors)?;
        let rest = tensors.iter().rev().map(|t| (t.name.clone(), t.bytes().unwrap_or(0)));
        let rest = rest.filter(|(_, bytes)| *bytes > 0).collect();
        let out = BufWriter::with_capacity(1 << 20, NewFile::create(path)?);
        let mut writer = SafetensorsWriter { path: path.to_owned(), out, rest };
        writer.push(&(header.len() as u64).to_le_bytes())?;
        writer.push(&header)?;
        Ok(writer)
    }

    /// Writes the next bytes, little-endian, of the tensor `name`.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self.rest.last_mut() {
            Some((next, left)) if next == name && *left >= bytes.len() => *left -= bytes.len(),
            next => {
                let next = next.map_or("nothing".into(), |(next, left)| format!("{left} bytes of {next}"));
                let found = format!("{} bytes", bytes.len());
                return Err(bad(&self.path, format!("tensor {name}"), found, next));
            }
        }
        self.rest.pop_if(|(_, left)| *left == 0);
        self.push(bytes)
    }

    /// Gives the complete file its name.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some((name, left)) = self.rest.last() {
            return Err(bad(&self.path, format!("tensor {name}"), "its end", format!("{left} more bytes")));
        }
        self.out.into_inner().map_err(|e| io(&self.path, e.into_error()))?.finish()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| io(&self.path, source))
    }
}

fn bad(path: &Path, field: impl Into<String>, found: impl ToString, expected: impl ToString) -> Error {
    Error::bad_file(path.display().to_string(), field, found, expected)
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

/// The JSON header, padded with spaces so that the data is aligned.
fn header(path: &Path, tensors: &[TensorPlan]) -> Result<Vec<u8>> {
    let mut names = std::collections::HashSet::new();
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0usize;
    for tensor @ TensorPlan { name, stored, shape } in tensors {
        if !names.insert(name) {
            return Err(bad(path, format!("tensor {name}"), "two of this name", "one"));
        }
        let Some(to) = tensor.bytes().and_then(|bytes| end.checked_add(bytes)) else {
            let found = format!("{stored} {shape:?}");
            return Err(bad(path, format!("tensor {name}, shape"), found, "a possible number of bytes"));
        };
        let info = TensorInfo { dtype: *stored, shape: shape.clone(), data_offsets: (end, to) };
        entries.push((name.clone(), info));
        end = to;
    }
    let json = Metadata::new(None, entries).map_err(|e| e.to_string());
    let json = json.and_then(|header| serde_json::to_vec(&header).map_err(|e| e.to_string()));
    let mut json = json.map_err(|e| bad(path, "header", e, "a valid header"))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Checkpoint, Source, TensorInfo as Info};
    use pollster::block_on;
    use proptest::prelude::*;

    /// A folder of its own for each use, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("headwise-write-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn tensors() -> impl Strategy<Value = Vec<(String, Vec<usize>, TensorData)>> {
        let shape = prop::collection::vec(0usize..5, 0..4);
        let values = |n| {
            prop_oneof![
                prop::collection::vec(any::<f32>(), n).prop_map(TensorData::F32),
                prop::collection::vec(any::<u32>(), n).prop_map(TensorData::U32),
            ]
        };
        let tensor = shape.prop_flat_map(move |s| {
            let n = s.iter().product::<usize>();
            (Just(s), values(n))
        });
        prop::collection::btree_map("[a-z.\\\\\"é]{1,12}", tensor, 0..8)
            .prop_map(|map| map.into_iter().map(|(name, (shape, data))| (name, shape, data)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read_back(tensors in tensors()) {
            // The reader refuses two empty tensors at one place.
            let mut empty = false;
            let tensors: Vec<_> = tensors
                .into_iter()
                .filter(|t| t.2.len() > 0 || !std::mem::replace(&mut empty, true))
                .collect();
            let folder = Folder::new();
            write_safetensors(&folder.0.join("model.safetensors"), &tensors).unwrap();
            let source = Source::folder(&folder.0);
            let checkpoint = block_on(Checkpoint::open(&source)).unwrap();
            prop_assert_eq!(checkpoint.tensors().count(), tensors.len());
            for (name, shape, data) in &tensors {
                let info = checkpoint.tensor(name).unwrap();
                prop_assert_eq!((&info.shape, info.stored), (shape, data.stored()));
                if let TensorData::F32(values) = data {
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&read(&checkpoint, &source, info)), bits(values));
                }
            }
            let bytes = std::fs::read(folder.0.join("model.safetensors")).unwrap();
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            prop_assert_eq!(folder.names(), ["model.safetensors"]);
        }
    }

    fn read(checkpoint: &Checkpoint, source: &Source, info: &Info) -> Vec<f32> {
        block_on(async {
            let mut stream = checkpoint.stream(source, vec![info]);
            let (mut all, mut some) = (Vec::new(), Vec::new());
            while let Some(chunk) = stream.next().await.unwrap() {
                chunk.to_f32(&mut some);
                all.extend_from_slice(&some);
            }
            all
        })
    }

    #[test]
    fn an_error_leaves_the_old_file_and_nothing_else() {
        let folder = Folder::new();
        let path = folder.0.join("model.safetensors");
        std::fs::write(&path, "old").unwrap();
        let bad = [("a".to_owned(), vec![3], TensorData::F32(vec![1.0; 2]))];
        let error = write_safetensors(&path, &bad).unwrap_err().to_string();
        assert!(error.contains("tensor a: found 2 values"), "{error}");
        let twice = TensorData::U32(vec![1]);
        let twice = [("a".to_owned(), vec![1], twice.clone()), ("a".to_owned(), vec![1], twice)];
        assert!(write_safetensors(&path, &twice).is_err());
        assert_eq!((std::fs::read(&path).unwrap(), folder.names().len()), (b"old".to_vec(), 1));

        let plans = [TensorPlan::new("a", Stored::F16, &[3]), TensorPlan::new("b", Stored::U8, &[0])];
        let start = || SafetensorsWriter::create(&path, &plans).unwrap();
        let errors = [
            (start().write("b", &[0; 2]), "tensor b: found 2 bytes, expected 6 bytes of a"),
            (start().write("a", &[0; 7]), "tensor a: found 7 bytes, expected 6 bytes of a"),
            (start().finish(), "tensor a: found its end, expected 6 more bytes"),
        ];
        for (error, expected) in errors {
            let error = error.unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
        let vast = TensorPlan::new("a", Stored::F32, &[usize::MAX, 2]);
        assert!(SafetensorsWriter::create(&path, &[vast]).is_err());
        assert_eq!((std::fs::read(&path).unwrap(), folder.names().len()), (b"old".to_vec(), 1));

        // The rename fails: a folder is in the way.
        let taken = folder.0.join("taken");
        std::fs::create_dir_all(taken.join("x")).unwrap();
        assert!(write_safetensors(&taken, &[]).is_err());
        assert_eq!(folder.names().len(), 2);
        assert!(write_safetensors(&folder.0.join("no/such/folder.safetensors"), &[]).is_err());
        assert!(write_safetensors(Path::new("/"), &[]).is_err());
    }
}
