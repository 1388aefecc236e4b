//! Writing a safetensors file: whole or not at all.

use crate::{Error, Result};
use safetensors::Dtype as Stored;
use safetensors::tensor::{Metadata, TensorInfo};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The values of a tensor to write.
#[derive(Debug, Clone)]
pub(crate) enum TensorData {
    /// Weights.
    F32(Vec<f32>),
    /// Indices, counters or packed bits.
    U32(Vec<u32>),
}

impl TensorData {
    fn stored(&self) -> Stored {
        match self {
            TensorData::F32(_) => Stored::F32,
            TensorData::U32(_) => Stored::U32,
        }
    }

    fn len(&self) -> usize {
        match self {
            TensorData::F32(values) => values.len(),
            TensorData::U32(values) => values.len(),
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            TensorData::F32(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
            TensorData::U32(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
        }
    }
}

/// Writes tensors, each `(name, shape, values)`, to a safetensors file, in the given order.
///
/// The file appears under its name only once it is complete and on the disk: until then a file of that name
/// stays as it was, and after an error nothing is left behind.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, TensorData)]) -> Result<()> {
    let header = header(path, tensors)?;
    let io = |source| Error::Io { path: path.display().to_string(), source };
    let (partial, file) = Partial::create(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut write = || {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(_, _, data)| data.write(&mut out))?;
        out.flush()?;
        out.get_ref().sync_all()
    };
    let written = write();
    drop(out);
    written.and_then(|()| std::fs::rename(&partial.0, path)).map_err(io)
}

/// The JSON header, padded with spaces so that the data is aligned.
fn header(path: &Path, tensors: &[(String, Vec<usize>, TensorData)]) -> Result<Vec<u8>> {
    let bad = |field: String, found: String, expected: String| {
        Error::bad_file(path.display().to_string(), field, found, expected)
    };
    let mut names = std::collections::HashSet::new();
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0usize;
    for (name, shape, data) in tensors {
        if !names.insert(name) {
            return Err(bad(format!("tensor {name}"), "two of this name".into(), "one".into()));
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let range = match data.len().checked_mul(4).and_then(|bytes| end.checked_add(bytes)) {
            Some(to) if elements == Some(data.len()) => (end, to),
            _ => {
                let expected = format!("as many as the shape {shape:?} has");
                return Err(bad(format!("tensor {name}"), format!("{} values", data.len()), expected));
            }
        };
        end = range.1;
        let info = TensorInfo { dtype: data.stored(), shape: shape.clone(), data_offsets: range };
        entries.push((name.clone(), info));
    }
    let json = Metadata::new(None, entries).map_err(|e| e.to_string());
    let json = json.and_then(|header| serde_json::to_vec(&header).map_err(|e| e.to_string()));
    let mut json = json.map_err(|e| bad("header".into(), e, "a valid header".into()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

/// A file under a name of its own, removed at the end unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    /// Creates a file beside `target`: a rename inside one folder is atomic.
    fn create(target: &Path) -> std::io::Result<(Self, File)> {
        let name = target.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_string_lossy();
        for attempt in 0..100 {
            let path = target.with_file_name(format!(".{name}.{}-{attempt}.partial", std::process::id()));
            match File::create_new(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                created => return created.map(|file| (Partial(path), file)),
            }
        }
        Err(std::io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Fails after the rename, when there is nothing to remove; otherwise there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
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

        // The rename fails: a folder is in the way.
        let taken = folder.0.join("taken");
        std::fs::create_dir_all(taken.join("x")).unwrap();
        assert!(write_safetensors(&taken, &[]).is_err());
        assert_eq!(folder.names().len(), 2);
        assert!(write_safetensors(&folder.0.join("no/such/folder.safetensors"), &[]).is_err());
        assert!(write_safetensors(Path::new("/"), &[]).is_err());
    }
}
