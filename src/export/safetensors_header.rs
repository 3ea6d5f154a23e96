//! The header of a safetensors file, checked against the file's length.
//!
//! It is not trusted: its offsets must follow one another without a gap, agree with shapes and types, and end exactly at the end
//! of the file. So a truncated download is an error at once, with both lengths, and not a short read in the middle of an export.

use std::{collections::BTreeMap, fmt, io::Read, path::Path};

use safetensors::tensor::TensorInfo;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::tensors_error::TensorsError;

/// The limit of the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Limits on a tensor's name and on its dimensions, beyond those of any model.
const MAX_NAME_BYTES: usize = 512;
const MAX_DIMENSIONS: usize = 8;

/// The header's one entry that is not a tensor.
const METADATA: &str = "__metadata__";

/// Bytes before the header: its length.
const PREFIX_BYTES: u64 = size_of::<u64>() as u64;

/// A file's header, checked against the file's length.
#[derive(Debug)]
pub(super) struct Header {
    /// Where the first tensor starts in the file.
    pub data_start: u64,
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header at the start of `file`, which lies at `path` and is `file_bytes` long.
    pub(super) fn read(file: &mut impl Read, path: &Path, file_bytes: u64) -> Result<Self, TensorsError> {
        let json = read_json(file, path, file_bytes)?;
        let Tensors(tensors) = serde_json::from_slice(&json)
            .map_err(|source| TensorsError::Header { path: path.into(), source })?;
        let data_start = PREFIX_BYTES + json.len() as u64;
        let described = data_start.saturating_add(check_offsets(path, &tensors)?);
        if described != file_bytes {
            return Err(TensorsError::Length { path: path.into(), described, file_bytes });
        }
        Ok(Self { data_start, tensors })
    }
}

fn read_json(file: &mut impl Read, path: &Path, file_bytes: u64) -> Result<Vec<u8>, TensorsError> {
    let failed = |source| TensorsError::Read { path: path.into(), source };
    let mut length = [0; size_of::<u64>()];
    if file_bytes < PREFIX_BYTES {
        return Err(TensorsError::HeaderLength { path: path.into(), header_bytes: 0, file_bytes });
    }
    file.read_exact(&mut length).map_err(failed)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file_bytes - PREFIX_BYTES) {
        return Err(TensorsError::HeaderLength { path: path.into(), header_bytes, file_bytes });
    }
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header).map_err(failed)?;
    Ok(header)
}

/// Checks that tensors lie one after another without a gap; gives where the last one ends.
fn check_offsets(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<u64, TensorsError> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut before = 0;
    for (tensor, info) in in_order {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let by_shape = byte_length(info).and_then(|bytes| bytes.checked_add(before));
        if start != before || Some(end) != by_shape {
            let (tensor, info) = (tensor.clone(), Box::new(info.clone()));
            return Err(TensorsError::Offsets { path: path.into(), tensor, info, before });
        }
        before = end;
    }
    Ok(before)
}

/// Bytes that a tensor's shape and type ask for, if they are a whole number of bytes that a file could have.
fn byte_length(info: &TensorInfo) -> Option<u64> {
    let elements = info.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64))?;
    let bits = elements.checked_mul(info.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The tensors of a header, none named twice: readers would disagree about which one counts.
struct Tensors(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TensorsVisitor).map(Self)
    }
}

struct TensorsVisitor;

impl<'de> Visitor<'de> for TensorsVisitor {
    type Value = BTreeMap<String, TensorInfo>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(A::Error::custom(format!("a name of {} bytes", name.len())));
            }
            let info: TensorInfo = map.next_value()?;
            if info.shape.len() > MAX_DIMENSIONS {
                return Err(A::Error::custom(format!("{name} has {} dimensions", info.shape.len())));
            }
            if tensors.contains_key(&name) {
                return Err(A::Error::custom(format!("{name} is there twice")));
            }
            tensors.insert(name, info);
        }
        Ok(tensors)
    }
}
