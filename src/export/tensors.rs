//! A file of tensors, read in pieces.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorInfo};

use super::{
    known_blocks::KnownBlocks,
    param::{Param, Run},
    positioned_io::PositionedFile,
    quantize::Quantizer,
    safetensors_header::Header,
    stored_type::StoredType,
    tensors_error::TensorsError,
};
use crate::files;

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
    /// Sizes and strides of the dimensions to go through, where elements do not follow one another.
    pub view: Option<Vec<(usize, usize)>>,
}

impl StoredTensor {
    /// A tensor of `shape` in float32 at the start of a file, without elements yet.
    pub(super) const fn plain(shape: Vec<usize>) -> Self {
        Self {
            shape,
            stored_type: Ok(StoredType::F32),
            start: 0,
            bytes: 0,
            row_order: RowOrder::Checkpoint,
            offset: 0.0,
            view: None,
        }
    }
}

/// Where elements `range` of a view are in the file's order, smallest first, each with its number in the range.
fn places(view: &[(usize, usize)], range: Range<usize>) -> Vec<(usize, usize)> {
    let place = |element: usize| {
        let mut rest = element;
        view.iter().rev().fold(0, |place, (size, stride)| {
            let index = rest % size;
            rest /= size;
            place + index * stride
        })
    };
    let mut places: Vec<_> = range.map(place).zip(0..).collect();
    places.sort_unstable();
    places
}

/// The order of a matrix's rows in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As in a Hugging Face checkpoint.
    #[default]
    Checkpoint,
    /// Of each head of `head_dim` rows, those of the first and the second half take turns.
    Interleaved { head_dim: usize },
    /// A checkpoint has for each of `groups` key heads its queries, the key and the value: `queries` rows and twice `keys`. The
    /// file has all queries, then all keys, then all values.
    Stacked { groups: usize, queries: usize, keys: usize },
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
            Self::Stacked { groups, queries, keys } => {
                let (group, within) = (row / (queries + 2 * keys), row % (queries + 2 * keys));
                if within < queries {
                    group * queries + within
                } else {
                    let (part, within) = ((within - queries) / keys, (within - queries) % keys);
                    groups * (queries + part * keys) + group * keys + within
                }
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
            ..StoredTensor::plain(info.shape)
        };
        let tensors = tensors.into_iter().map(|(name, info)| (name, stored(info))).collect();
        Ok(Self::new(path, file, tensors))
    }

    /// A file whose header has been read and checked against its length.
    pub(super) fn new(path: &Path, file: File, tensors: BTreeMap<String, StoredTensor>) -> Self {
        Self { path: path.into(), file: PositionedFile::new(file), tensors }
    }

    /// Forgets a tensor that is not a weight.
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
    ///
    /// Callers have checked shape and type.
    pub(super) fn read_param(
        &self,
        tensor: &str,
        param: &Param,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let (cols, before) = (param.stored_cols(), param.stored_start());
        param.read(rows, |lines| {
            if !param.transposed {
                let mut values = Vec::with_capacity(lines.len() * cols);
                for elements in self.elements(tensor, lines, cols) {
                    values.extend(self.read(tensor, before + elements.start..before + elements.end)?);
                }
                return Ok(values);
            }
            let columns = Columns { before, lines, of: param.stored_lines(), height: cols };
            self.read_columns(tensor, &columns)
        })
    }

    /// Whether `param` can keep the codes of the blocks that the tensor has, with `quantizer`.
    pub(super) fn repacks(&self, tensor: &str, param: &Param, quantizer: Quantizer) -> bool {
        // Padding within a row moves its blocks.
        let is_as_stored = !param.transposed && param.stored_cols() == param.shape.cols();
        let stored = self.tensors.get(tensor).filter(|stored| is_as_stored && stored.offset == 0.0);
        stored.and_then(|stored| stored.stored_type.ok()).is_some_and(|stored| quantizer.repacks(stored))
    }

    /// The blocks of `rows` of `param`, if the tensor has blocks that `quantizer` repacks.
    pub(super) fn read_blocks_of(
        &self,
        tensor: &str,
        (param, rows): (&Param, Range<usize>),
        quantizer: Quantizer,
    ) -> Result<Option<KnownBlocks>, TensorsError> {
        let stored = self.stored(tensor)?;
        let Ok(stored_type) = stored.stored_type else { return Ok(None) };
        if !self.repacks(tensor, param, quantizer) {
            return Ok(None);
        }
        let (cols, block) = (param.shape.cols(), stored_type.block());
        let before = param.stored_start();
        let mut known = KnownBlocks::default();
        for run in param.stored(rows) {
            match run {
                Run::Zeros(count) => known.extend(quantizer.zero_blocks(count * quantizer.blocks(cols))),
                Run::Stored(lines) => {
                    for elements in self.elements(tensor, lines, cols) {
                        let blocks = (before + elements.start) / block..(before + elements.end) / block;
                        let bytes = self.read_blocks(stored, stored_type.block_bytes(), blocks)?;
                        known.extend(stored_type.known_blocks(&bytes));
                    }
                }
            }
        }
        Ok(Some(known))
    }

    /// Some columns of a matrix, one after the other.
    fn read_columns(&self, tensor: &str, columns: &Columns) -> Result<Vec<f32>, TensorsError> {
        let Columns { before, lines, of, height } = columns;
        let mut values = vec![0.0; lines.len() * height];
        for row in 0..*height {
            let start = before + row * of;
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

    /// Reads elements `range` of `tensor`, in row-major order, as float32.
    ///
    /// Callers have checked shape and type; a range beyond the tensor's end reads as an unexpected end of file.
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

    /// Whether the numbers of `tensor` have 16 bits.
    pub(super) fn is_half(&self, tensor: &str) -> bool {
        let stored = self.tensors.get(tensor).map(|stored| &stored.stored_type);
        matches!(stored, Some(Ok(StoredType::F16 | StoredType::BF16)))
    }

    /// The type of a tensor that holds parts of packed weights.
    pub(super) fn part_type(&self, tensor: &str) -> Option<Dtype> {
        self.tensors.get(tensor).and_then(|stored| stored.stored_type.err())
    }

    /// Reads elements `range` of a tensor whose elements are bytes.
    pub(super) fn read_bytes(&self, tensor: &str, range: Range<usize>) -> Result<Vec<u8>, TensorsError> {
        self.read_parts(
            tensor,
            range,
            &[Dtype::U8, Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F8_E8M0],
        )
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
        if let Some(view) = &stored.view {
            return self.read_view((stored, view), block_bytes, blocks).map_err(failed);
        }
        if (blocks.end as u64).saturating_mul(block_bytes as u64) > stored.bytes {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![0; blocks.len() * block_bytes];
        let offset = stored.start + (blocks.start * block_bytes) as u64;
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    }

    /// Elements `range` of a tensor that is a view: a transposed matrix or a slice. Neighbours in the file are read at once.
    fn read_view(
        &self,
        (stored, view): (&StoredTensor, &[(usize, usize)]),
        size: usize,
        range: Range<usize>,
    ) -> io::Result<Vec<u8>> {
        if range.end > stored.shape.iter().product::<usize>() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; range.len() * size];
        let mut piece = Vec::new();
        let places = places(view, range);
        for run in places.chunk_by(|one, next| next.0 - one.0 <= 1) {
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            piece.resize((last - first + 1) * size, 0);
            self.file.read_exact_at(&mut piece, stored.start + (first * size) as u64)?;
            for (place, at) in run {
                bytes[at * size..][..size].copy_from_slice(&piece[(place - first) * size..][..size]);
            }
        }
        Ok(bytes)
    }
}

/// The types of safetensors that weights have.
pub(super) fn stored_type(dtype: Dtype) -> Option<StoredType> {
    match dtype {
        Dtype::F32 => Some(StoredType::F32),
        Dtype::F16 => Some(StoredType::F16),
        Dtype::BF16 => Some(StoredType::BF16),
        _ => None,
    }
}

/// Columns of a matrix of `height` rows of `of` numbers.
struct Columns {
    /// Numbers before the matrix.
    before: usize,
    lines: Range<usize>,
    of: usize,
    height: usize,
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
