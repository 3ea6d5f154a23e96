//! The header of a GGUF file (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): metadata and the places of tensors.
//!
//! Nothing in it is trusted: every length is checked against what is left of the file before memory is allocated, so a damaged
//! header is an error with its position.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use crate::{export::stored_type::StoredType, files, units::Bytes};

use super::error::GgufError;

/// The largest header that is read. A vocabulary of 260,000 tokens with its merges has 15 MiB.
const MAX_HEADER: Bytes = Bytes(128 << 20);

/// Most entries of metadata, and most tensors.
const MAX_ENTRIES: u64 = 1 << 17;

/// Most elements of an array: a few times the largest vocabulary.
const MAX_ELEMENTS: u64 = 1 << 22;

/// Most bytes of a key or a tensor's name.
const MAX_NAME: u64 = 512;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Where tensors begin is a multiple of this, unless the metadata has another.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Numbers(values) => write!(f, "a list of {} numbers", values.len()),
            Self::Texts(values) => write!(f, "a list of {} strings", values.len()),
        }
    }
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorEntry {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub stored_type: StoredType,
    /// From the file's first byte.
    pub start: u64,
    pub bytes: u64,
}

/// A file's header.
#[derive(Debug)]
pub(super) struct Header {
    pub path: PathBuf,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorEntry>,
}

impl Header {
    /// Opens the file at `path` and reads its header.
    pub(super) fn open(path: &Path) -> Result<(File, Self), GgufError> {
        let failed = |source| GgufError::Read { path: path.into(), source };
        let file = files::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let header = Self::read(BufReader::with_capacity(1 << 16, &file), path, file_bytes)?;
        Ok((file, header))
    }

    /// Reads the header of a file that lies at `path` and is `file_bytes` long.
    pub(super) fn read(file: impl Read, path: &Path, file_bytes: u64) -> Result<Self, GgufError> {
        let left = file_bytes.min(MAX_HEADER.0);
        let mut reader = Reader { file, path, position: 0, left };
        reader.check_version()?;
        let (tensors, entries) = (reader.u64()?, reader.u64()?);
        if tensors > MAX_ENTRIES || entries > MAX_ENTRIES {
            return Err(reader.damaged(format!(
                "{tensors} tensors and {entries} metadata entries; at most {MAX_ENTRIES} are possible"
            )));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.name()?;
            let kind = reader.u32()?;
            let value = reader.value(kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.damaged(format!("{key} is there twice")));
            }
        }
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(reader.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(bytes)) if bytes.is_power_of_two() && *bytes <= 1 << 20 => *bytes,
            Some(other) => {
                return Err(reader.damaged(format!("general.alignment is {other}, expected a power of two")));
            }
        };
        let data_start = reader.position.next_multiple_of(alignment);
        for entry in &mut entries {
            entry.start = entry.start.saturating_add(data_start);
            if entry.start.saturating_add(entry.bytes) > file_bytes {
                let TensorEntry { name, start, bytes, .. } = entry;
                return Err(reader.damaged(format!(
                    "{name} has {bytes} bytes from byte {start} on, and the file has {file_bytes}"
                )));
            }
        }
        Ok(Self { path: path.into(), metadata, tensors: entries })
    }
}

/// Reads one after the other, never past the end.
struct Reader<'a, R> {
    file: R,
    path: &'a Path,
    position: u64,
    left: u64,
}

impl<R: Read> Reader<'_, R> {
    fn damaged(&self, problem: impl Into<String>) -> GgufError {
        GgufError::Damaged { path: self.path.into(), position: self.position, problem: problem.into() }
    }

    /// Checks that `bytes` more are there.
    fn expect(&self, bytes: u64) -> Result<(), GgufError> {
        if bytes > self.left {
            return Err(
                self.damaged(format!("the header goes on for {bytes} bytes, and {} are left", self.left))
            );
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.expect(bytes.len() as u64)?;
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("the file ends here"),
            _ => GgufError::Read { path: self.path.into(), source },
        })?;
        self.position += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.bytes(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn check_version(&mut self) -> Result<(), GgufError> {
        let path = self.path;
        let wrong = |found: String| Err(GgufError::Format { path: path.into(), found });
        // Magic, version, and two counts.
        if self.left < 24 {
            return wrong(format!("it has only {} bytes", self.left));
        }
        let magic = self.array::<4>()?;
        if magic != *b"GGUF" {
            return wrong(format!("it begins with \"{}\"", magic.escape_ascii()));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version if version.swap_bytes() <= 3 => wrong("it is a big-endian GGUF file".into()),
            version => wrong(format!("it is a GGUF file of version {version}")),
        }
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        self.expect(length)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.bytes(&mut bytes)?;
        // Descriptions may have another encoding, which harms nothing; a name with such bytes matches nothing.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn name(&mut self) -> Result<String, GgufError> {
        let name = self.text()?;
        if name.is_empty() || name.len() as u64 > MAX_NAME {
            return Err(self.damaged(format!("a name of {} bytes, expected 1 to {MAX_NAME}", name.len())));
        }
        Ok(name)
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.damaged(format!("a value of type {kind}, expected 0 to 12"))),
        })
    }

    fn list(&mut self) -> Result<Value, GgufError> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if count > MAX_ELEMENTS {
            return Err(
                self.damaged(format!("a list of {count} values; at most {MAX_ELEMENTS} are possible"))
            );
        }
        if kind == 8 {
            return (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts);
        }
        if kind == 9 {
            return Err(self.damaged("a list of lists, which no model has"));
        }
        (0..count).map(|_| self.value(kind).map(number)).collect::<Result<_, _>>().map(Value::Numbers)
    }

    fn tensor(&mut self) -> Result<TensorEntry, GgufError> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(
                self.damaged(format!("{name} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(
                usize::try_from(size).map_err(|_| self.damaged(format!("{name} has a size of {size}")))?,
            );
        }
        let number = self.u32()?;
        let Some(stored_type) = StoredType::of_ggml(number) else {
            return Err(GgufError::Unsupported {
                path: self.path.into(),
                key: format!("the type of tensor {name}"),
                value: format!("GGML's number {number}"),
                supported: supported_types(),
            });
        };
        let row = shape[0];
        if !row.is_multiple_of(stored_type.block()) {
            let block = stored_type.block();
            return Err(self.damaged(format!(
                "{name} has rows of {row}, expected a multiple of {block} for {stored_type}"
            )));
        }
        let elements = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64));
        let bytes = elements
            .map(|elements| elements / stored_type.block() as u64)
            .and_then(|blocks| blocks.checked_mul(stored_type.block_bytes() as u64))
            .ok_or_else(|| self.damaged(format!("{name} is larger than any file")))?;
        shape.reverse();
        Ok(TensorEntry { name, shape, stored_type, start: self.u64()?, bytes })
    }
}

/// An element of a list of numbers or truth values.
#[expect(clippy::cast_precision_loss, reason = "token types, scores and sizes are far below 2^53")]
fn number(value: Value) -> f64 {
    match value {
        Value::Unsigned(value) => value as f64,
        Value::Signed(value) => value as f64,
        Value::Float(value) => value,
        Value::Bool(value) => f64::from(u8::from(value)),
        Value::Text(_) | Value::Numbers(_) | Value::Texts(_) => f64::NAN,
    }
}

/// The types that are read, for an error.
fn supported_types() -> String {
    let names: Vec<_> = (0..64).filter_map(StoredType::of_ggml).map(|stored| stored.to_string()).collect();
    names.join(", ")
}
