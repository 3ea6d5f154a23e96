//! Writes and damages safetensors files.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// A safetensors file, taken apart.
pub(crate) struct Tensors {
    pub(crate) header: Value,
    pub(crate) data: Vec<u8>,
}

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (length, rest) = bytes.split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        let (header, data) = rest.split_at(length);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.into() }
    }

    pub(crate) fn write(&self, path: &Path) {
        write_raw(path, &self.header.to_string(), &self.data);
    }

    pub(crate) fn offsets(&self, tensor: &str) -> std::ops::Range<usize> {
        let [start, end] = [0, 1].map(|side| {
            usize::try_from(self.header[tensor]["data_offsets"][side].as_u64().unwrap()).unwrap()
        });
        start..end
    }

    /// Only the tensors that `is_wanted` takes.
    pub(crate) fn part(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let (mut header, mut data) = (json!({}), Vec::new());
        for (name, info) in self.header.as_object().unwrap().iter().filter(|(name, _)| is_wanted(name)) {
            if info.get("dtype").is_some() {
                let bytes = &self.data[self.offsets(name)];
                let offsets = [data.len(), data.len() + bytes.len()];
                header[name] =
                    json!({ "dtype": info["dtype"], "shape": info["shape"], "data_offsets": offsets });
                data.extend(bytes);
            }
        }
        Self { header, data }
    }
}

pub(crate) fn write_raw(path: &Path, header: &str, data: &[u8]) {
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
}

pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = Tensors::read(path);
    change(&mut tensors);
    tensors.write(path);
}

/// Puts a float32 at the start of a tensor.
pub(crate) fn poison(path: &Path, tensor: &str, value: f32) {
    edit(path, |tensors| {
        let start = tensors.offsets(tensor).start;
        tensors.data[start..start + 4].copy_from_slice(&value.to_le_bytes());
    });
}

/// Renames a tensor.
pub(crate) fn rename(path: &Path, from: &str, to: &str) {
    edit(path, |tensors| {
        let fields = tensors.header.as_object_mut().unwrap();
        let info = fields.remove(from).unwrap();
        fields.insert(to.into(), info);
    });
}
