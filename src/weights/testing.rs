//! Small safetensors files for unit tests.

/// A safetensors file of tensors, each `(name, dtype, shape, bytes)`.
pub(crate) fn file(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (from, to) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#
        ));
        data.extend(bytes);
    }
    let json = format!("{{{}}}", entries.join(","));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &data].concat()
}
