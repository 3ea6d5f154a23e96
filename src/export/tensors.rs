//! A file of tensors, read in pieces, and the header of a safetensors file, checked against the file's length.
//!
//! A header is not trusted: its offsets must follow one another without a gap, agree with shapes and types, and end where the
//! file does. So a truncated download is an error at once, with both lengths, and not a short read in the middle of an export.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorInfo};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::{
    param::{Param, Run},
    positioned_io::PositionedFile,
    quantize::Quantizer,
    stored_type::StoredType,
};
use crate::files;

/// The limit of the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Limits on a tensor's name and on its dimensions, beyond those of any model.
const MAX_NAME_BYTES: usize = 512;
const MAX_DIMENSIONS: usize = 8;

/// The header's one entry that is not a tensor.
const METADATA: &str = "__metadata__";

const PREFIX_BYTES: u64 = size_of::<u64>() as u64;

/// Why a safetensors file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// It is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its first bytes are not the length of a header that could be in it.
    #[error(
        "{}: a header of {header_bytes} bytes cannot be in a file of {file_bytes}; this is not a complete safetensors \
         file, download it again",
        path.display()
    )]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The header's length by its first eight bytes.
        header_bytes: u64,
        /// Its length.
        file_bytes: u64,
    },
    /// The header is not what the format asks for.
    #[error("{}: its header is not valid: {source}; download it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// A tensor does not lie where the one before it ends, or is not as long as its shape makes it.
    #[error(
        "{}: {tensor} cannot lie at bytes {} to {}: the tensor before it ends at {before}, and {:?} of shape {:?} ends \
         elsewhere; the file is damaged, download it again",
        path.display(), info.data_offsets.0, info.data_offsets.1, info.dtype, info.shape
    )]
    Offsets {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its entry in the header.
        info: Box<TensorInfo>,
        /// Where it should start.
        before: u64,
    },
    /// The tensors that the header describes do not end where the file does.
    #[error(
        "{}: the header describes {described} bytes, the file has {file_bytes}; it is truncated or was changed, \
         download it again",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Header and tensors together, as the header has it.
        described: u64,
        /// Its length.
        file_bytes: u64,
    },
    /// A tensor of a type that weights do not have.
    #[error(
        "{}: {tensor} is {found}; supported: F32, F16, BF16; convert the checkpoint to one of them",
        path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A part of a packed weight is not there.
    #[error("{}: {tensor} has no {end} beside it; download the checkpoint again", path.display())]
    NoPart {
        /// The file.
        path: PathBuf,
        /// A part that is there.
        tensor: String,
        /// The end of the name of the part that is missing.
        end: &'static str,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error(
        "{}: {tensor} has the shape {found:?}, the configuration makes it {expected}; do the two belong together?",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: String,
    },
}

/// A file of tensors, open, with its header read.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    file: PositionedFile,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub shape: Vec<usize>,
    /// Its type, or one that only parts of packed weights have.
    pub stored_type: Result<StoredType, Dtype>,
    /// Where it starts in the file.
    pub start: u64,
    pub bytes: u64,
    /// The file's order of rows, if it differs from the checkpoint's.
    pub row_order: RowOrder,
    /// What the file has added to every number.
    pub offset: f32,
}

/// The order of a matrix's rows in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As in a Hugging Face checkpoint.
    #[default]
    Checkpoint,
    /// Of each head of `head_dim` rows, those of the first and the second half take turns.
    Interleaved { head_dim: usize },
}

impl RowOrder {
    /// Where a checkpoint's row is in the file.
    const fn stored(self, row: usize) -> usize {
        match self {
            Self::Checkpoint => row,
            Self::Interleaved { head_dim } => {
                let (head, within, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + within % half * 2 + within / half
            }
        }
    }
}

impl TensorFile {
    /// Opens the safetensors file at `path` and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, TensorsError> {
        let failed = |source| TensorsError::Read { path: path.into(), source };
        let mut file = files::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let Header { data_start, tensors } = Header::read(&mut file, path, file_bytes)?;
        let stored = |info: TensorInfo| StoredTensor {
            stored_type: stored_type(info.dtype).ok_or(info.dtype),
            start: data_start + info.data_offsets.0 as u64,
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            shape: info.shape,
            row_order: RowOrder::Checkpoint,
            offset: 0.0,
        };
        let tensors = tensors.into_iter().map(|(name, info)| (name, stored(info))).collect();
        Ok(Self::new(path, file, tensors))
    }

    /// A file whose header has been read and checked against its length.
    pub(super) fn new(path: &Path, file: File, tensors: BTreeMap<String, StoredTensor>) -> Self {
        Self { path: path.into(), file: PositionedFile::new(file), tensors }
    }

    /// Forgets a tensor that is no weight.
    pub(super) fn remove(&mut self, tensor: &str) {
        self.tensors.remove(tensor);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn contains(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// The shape of a tensor that [`Self::names`] lists.
    pub(super) fn shape(&self, tensor: &str) -> &[usize] {
        self.tensors.get(tensor).map_or(&[], |info| &info.shape)
    }

    /// Whether `tensor` can be read as float32.
    pub(super) fn check_type(&self, tensor: &str) -> Result<(), TensorsError> {
        match self.part_type(tensor) {
            None => Ok(()),
            Some(dtype) => Err(self.type_error(tensor, dtype)),
        }
    }

    fn type_error(&self, tensor: &str, found: impl fmt::Debug) -> TensorsError {
        TensorsError::Type { path: self.path.clone(), tensor: tensor.into(), found: format!("{found:?}") }
    }

    /// The error for a `tensor` that should have another shape.
    pub(super) fn shape_error(&self, tensor: &str, expected: impl ToString) -> TensorsError {
        TensorsError::Shape {
            path: self.path.clone(),
            tensor: tensor.into(),
            found: self.shape(tensor).to_vec(),
            expected: expected.to_string(),
        }
    }

    /// Reads `rows` of `param` from the tensor that it lies in, row by row, as float32.
    pub(super) fn read_param(
        &self,
        tensor: &str,
        param: &Param,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let cols = param.stored_cols();
        param.read(rows, |lines| {
            if !param.transposed {
                let mut values = Vec::with_capacity(lines.len() * cols);
                for elements in self.elements(tensor, lines, cols) {
                    values.extend(self.read(tensor, elements)?);
                }
                return Ok(values);
            }
            let columns = Columns { lines, of: param.stored_lines(), height: cols };
            self.read_columns(tensor, &columns)
        })
    }

    /// The scales of the blocks of `rows` of `param`, if the tensor has blocks that `quantizer` repacks.
    pub(super) fn read_scales(
        &self,
        tensor: &str,
        (param, rows): (&Param, Range<usize>),
        quantizer: Quantizer,
    ) -> Result<Option<Vec<f32>>, TensorsError> {
        let stored = self.stored(tensor)?;
        let Ok(stored_type) = stored.stored_type else { return Ok(None) };
        // Padding within a row moves its blocks.
        let is_as_stored =
            !param.transposed && param.stored_cols() == param.shape.cols() && stored.offset == 0.0;
        if !is_as_stored || !quantizer.repacks(stored_type) {
            return Ok(None);
        }
        let (cols, block) = (param.shape.cols(), stored_type.block());
        let mut scales = Vec::new();
        for run in param.stored(rows) {
            match run {
                Run::Zeros(count) => scales.resize(scales.len() + count * cols / block, 0.0),
                Run::Stored(lines) => {
                    for elements in self.elements(tensor, lines, cols) {
                        let blocks = elements.start / block..elements.end / block;
                        let bytes = self.read_blocks(stored, stored_type.block_bytes(), blocks)?;
                        scales.extend(stored_type.scales(&bytes));
                    }
                }
            }
        }
        Ok(Some(scales))
    }

    /// Some columns of a matrix, one after the other.
    fn read_columns(&self, tensor: &str, columns: &Columns) -> Result<Vec<f32>, TensorsError> {
        let Columns { lines, of, height } = columns;
        let mut values = vec![0.0; lines.len() * height];
        for row in 0..*height {
            let start = row * of;
            let part = self.read(tensor, start + lines.start..start + lines.end)?;
            for (line, value) in part.into_iter().enumerate() {
                values[line * height + row] = value;
            }
        }
        Ok(values)
    }

    /// Where some rows of `cols` numbers are, in the checkpoint's order.
    fn elements(&self, tensor: &str, rows: Range<usize>, cols: usize) -> Vec<Range<usize>> {
        let order = self.tensors.get(tensor).map(|stored| stored.row_order).unwrap_or_default();
        if order == RowOrder::Checkpoint {
            return std::iter::once(rows.start * cols..rows.end * cols).collect();
        }
        rows.map(|row| order.stored(row)).map(|row| row * cols..(row + 1) * cols).collect()
    }

    /// Reads elements `range` of `tensor`, row by row, as float32; beyond the tensor's end that is an unexpected end of file.
    pub(super) fn read(&self, tensor: &str, range: Range<usize>) -> Result<Vec<f32>, TensorsError> {
        let stored = self.stored(tensor)?;
        let stored_type = stored.stored_type.map_err(|dtype| self.type_error(tensor, dtype))?;
        let block = stored_type.block();
        let blocks = range.start / block..range.end.div_ceil(block);
        let mut values =
            stored_type.widen(&self.read_blocks(stored, stored_type.block_bytes(), blocks.clone())?);
        values.truncate(range.end - blocks.start * block);
        values.drain(..range.start - blocks.start * block);
        if stored.offset != 0.0 {
            values.iter_mut().for_each(|value| *value -= stored.offset);
        }
        Ok(values)
    }

    /// The type of a tensor that holds parts of packed weights.
    pub(super) fn part_type(&self, tensor: &str) -> Option<Dtype> {
        self.tensors.get(tensor).and_then(|stored| stored.stored_type.err())
    }

    /// Reads elements `range` of a tensor whose elements are bytes.
    pub(super) fn read_bytes(&self, tensor: &str, range: Range<usize>) -> Result<Vec<u8>, TensorsError> {
        self.read_parts(tensor, range, &[Dtype::U8, Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2])
    }

    /// Reads elements `range` of a tensor of 32-bit words.
    pub(super) fn read_words(&self, tensor: &str, range: Range<usize>) -> Result<Vec<u32>, TensorsError> {
        let bytes = self.read_parts(tensor, range, &[Dtype::I32, Dtype::U32])?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect())
    }

    /// The bytes of elements `range` of a tensor of one of the types `expected`.
    fn read_parts(
        &self,
        tensor: &str,
        range: Range<usize>,
        expected: &[Dtype],
    ) -> Result<Vec<u8>, TensorsError> {
        let stored = self.stored(tensor)?;
        match stored.stored_type {
            Err(dtype) if expected.contains(&dtype) => self.read_blocks(stored, dtype.bitsize() / 8, range),
            Err(dtype) => Err(self.type_error(tensor, dtype)),
            Ok(stored_type) => Err(self.type_error(tensor, stored_type)),
        }
    }

    fn stored(&self, tensor: &str) -> Result<&StoredTensor, TensorsError> {
        self.tensors.get(tensor).ok_or_else(|| TensorsError::Read {
            path: self.path.clone(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn read_blocks(
        &self,
        stored: &StoredTensor,
        block_bytes: usize,
        blocks: Range<usize>,
    ) -> Result<Vec<u8>, TensorsError> {
        let failed = |source| TensorsError::Read { path: self.path.clone(), source };
        if (blocks.end as u64).saturating_mul(block_bytes as u64) > stored.bytes {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![0; blocks.len() * block_bytes];
        let offset = stored.start + (blocks.start * block_bytes) as u64;
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    }
}

/// The types of safetensors that weights have.
fn stored_type(dtype: Dtype) -> Option<StoredType> {
    match dtype {
        Dtype::F32 => Some(StoredType::F32),
        Dtype::F16 => Some(StoredType::F16),
        Dtype::BF16 => Some(StoredType::BF16),
        _ => None,
    }
}

/// Columns of a matrix of `height` rows of `of` numbers.
struct Columns {
    lines: Range<usize>,
    of: usize,
    height: usize,
}

/// A file's header, checked against the file's length.
#[derive(Debug)]
pub(super) struct Header {
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use half::{bf16, f16};

    use super::*;

    fn open(bytes: &[u8]) -> Result<TensorFile, TensorsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn every_float_type_is_widened_exactly() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "b":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},
            "c":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}"#;
        let [one, half] = [f16::from_f32(1.0), f16::from_f32(-0.5)].map(f16::to_le_bytes);
        let data = [&1.25f32.to_le_bytes()[..], &one, &half, &bf16::from_f32(3.0).to_le_bytes()].concat();
        let file = open(&with_header(header, &data)).unwrap();
        assert_eq!(file.read("a", 0..1).unwrap(), [1.25]);
        assert_eq!(file.read("b", 0..2).unwrap(), [1.0, -0.5]);
        assert_eq!(file.read("b", 1..2).unwrap(), [-0.5]);
        assert_eq!(file.read("c", 0..1).unwrap(), [3.0]);
        assert!(file.read("c", 0..2).is_err());
    }

    #[test]
    fn rows_that_take_turns_are_read_in_the_checkpoints_order() {
        let order = RowOrder::Interleaved { head_dim: 4 };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|row| order.stored(row)), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_truncated_file_is_an_error_with_both_lengths() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let message = open(&with_header(header, &[0; 5])).unwrap_err().to_string();
        assert!(message.contains("describes 70 bytes, the file has 67"), "{message}");
    }

    #[test]
    fn a_lying_header_is_an_error_and_never_a_huge_allocation() {
        for header in [
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,18446744073709551615]}}"#,
            r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F4","shape":[9],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
                "b":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#,
            r#"["a"]"#,
        ] {
            assert!(open(&with_header(header, &[0; 4])).is_err(), "{header} was believed");
        }
        assert!(matches!(open(&u64::MAX.to_le_bytes()), Err(TensorsError::HeaderLength { .. })));
        assert!(matches!(open(b"short"), Err(TensorsError::HeaderLength { .. })));
    }

    #[test]
    fn a_type_that_weights_do_not_have_is_refused_by_name() {
        let header = r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#;
        let message = open(&with_header(header, &[0])).unwrap().check_type("a").unwrap_err().to_string();
        assert!(message.contains("F8_E4M3") && message.contains("BF16"), "{message}");
    }
}
