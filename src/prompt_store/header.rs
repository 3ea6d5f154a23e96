//! The header of a file: what is in it, and that this can be.

use std::{
    collections::HashMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::PromptStoreError;
use crate::units::Bytes;

/// The format that is written, and the only one that is read.
pub(super) const FORMAT: &str = "1";

/// Where the format is named.
const FORMAT_KEY: &str = "eka_saved_prompt";
const MODEL_KEY: &str = "model";
const IDENTITY_KEY: &str = "identity";
const SAVED_AT_KEY: &str = "saved_at";
const SUM_KEY: &str = "sha256";

/// The tensor of tokens.
const TOKENS: &str = "tokens";

/// Bytes of the header's own length, which a file begins with.
pub(super) const PREFIX: usize = size_of::<u64>();

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptInfo {
    /// What the model was called that computed it.
    pub model: String,
    /// What that model is, whatever it is called.
    pub identity: String,
    /// When it was saved, in seconds since 1970.
    pub saved_at: u64,
    /// Positions, one a token.
    pub tokens: usize,
    /// The keys and values of one position.
    pub shape: CacheShape,
}

/// The sizes of a model's key-value cache, but for its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers, each with keys and values.
    pub layers: usize,
    /// Heads of keys, and of values.
    pub heads: usize,
    /// Elements of one head's row, scales included.
    pub row: usize,
    /// What an element is.
    pub kind: CacheDtype,
}

/// What keys and values are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDtype {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 half precision.
    Float16,
    /// The upper half of a single.
    Bfloat16,
    /// Bytes, with a scale for each 32 of them.
    Int8,
}

/// As settings spell it.
impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        })
    }
}

impl CacheDtype {
    const fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Float16 => Dtype::F16,
            Self::Bfloat16 => Dtype::BF16,
            Self::Int8 => Dtype::I8,
        }
    }

    fn of(dtype: Dtype) -> Option<Self> {
        [Self::Float32, Self::Float16, Self::Bfloat16, Self::Int8]
            .into_iter()
            .find(|kind| kind.dtype() == dtype)
    }

    /// Bytes of an element.
    const fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl CacheShape {
    /// Layers, heads and elements a row.
    #[must_use]
    pub const fn sizes(self) -> [usize; 3] {
        [self.layers, self.heads, self.row]
    }

    /// Bytes of one layer's keys, or values, of so many positions; `None` where they cannot be counted.
    #[must_use]
    pub fn tensor_bytes(self, positions: usize) -> Option<usize> {
        [self.heads, positions, self.row].into_iter().try_fold(self.kind.bytes(), usize::checked_mul)
    }
}

impl CacheShape {
    /// Bytes of all keys and values of so many positions; as many as can be counted where those cannot.
    #[must_use]
    pub fn bytes(self, positions: usize) -> Bytes {
        let all = self.tensor_bytes(positions).and_then(|one| one.checked_mul(2)?.checked_mul(self.layers));
        Bytes::from(all.unwrap_or(usize::MAX))
    }
}

/// A header, and the sum that it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) head: PromptInfo,
    pub(super) sum: String,
}

impl Header {
    /// The first bytes of the file, up to its tensors. Their number does not depend on the sum.
    pub(super) fn encode(&self) -> Result<Vec<u8>, PromptStoreError> {
        let Self { head, sum } = self;
        let refused = |message: String| PromptStoreError::Header { message };
        let infos = head.tensors().ok_or_else(|| refused("its size cannot be counted".into()))?;
        let texts = [
            (FORMAT_KEY, FORMAT.into()),
            (MODEL_KEY, head.model.clone()),
            (IDENTITY_KEY, head.identity.clone()),
            (SAVED_AT_KEY, head.saved_at.to_string()),
            (SUM_KEY, sum.clone()),
        ];
        let texts = texts.map(|(key, text)| (key.to_owned(), text)).into();
        let metadata = Metadata::new(Some(texts), infos).map_err(|e| refused(e.to_string()))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|e| refused(e.to_string()))?;
        // Tensors begin at a multiple of what they are read by.
        json.resize(json.len().next_multiple_of(PREFIX), b' ');
        Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
    }

    /// Reads what [`encode`](Self::encode) wrote, without the length that stands before it; and how many bytes follow it.
    pub(super) fn decode(json: &[u8]) -> Result<(Self, u64), PromptStoreError> {
        let refused = |message: &str| PromptStoreError::Header { message: message.into() };
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|e| PromptStoreError::Header { message: e.to_string() })?;
        let none = HashMap::new();
        let texts = metadata.metadata().as_ref().unwrap_or(&none);
        let text = |key: &str| texts.get(key).cloned();
        let format = text(FORMAT_KEY).ok_or_else(|| refused("it does not say that it is a saved prompt"))?;
        if format != FORMAT {
            return Err(PromptStoreError::Format { found: format });
        }
        let missing =
            || refused("it does not say which model it is of, when it was saved and what its sum is");
        let (tokens, shape) = described(&metadata).ok_or_else(|| refused("it has other tensors"))?;
        let head = PromptInfo {
            model: text(MODEL_KEY).ok_or_else(missing)?,
            identity: text(IDENTITY_KEY).ok_or_else(missing)?,
            saved_at: text(SAVED_AT_KEY).and_then(|text| text.parse().ok()).ok_or_else(missing)?,
            tokens,
            shape,
        };
        let expected = head.tensors().and_then(|infos| Metadata::new(None, infos).ok());
        let is_ours = |expected: Metadata| {
            let (found, expected) = (metadata.tensors(), expected.tensors());
            let is_same = |one: &TensorInfo, other: &TensorInfo| {
                (one.dtype, &one.shape, one.data_offsets) == (other.dtype, &other.shape, other.data_offsets)
            };
            found.len() == expected.len()
                && expected.iter().all(|(name, info)| found.get(name).is_some_and(|one| is_same(one, info)))
        };
        if !expected.is_some_and(is_ours) {
            return Err(refused("its tensors are not those of keys and values alike"));
        }
        Ok((Self { head, sum: text(SUM_KEY).ok_or_else(missing)? }, metadata.data_len() as u64))
    }
}

/// Positions and sizes by the first tensors; the rest is compared with them.
fn described(metadata: &Metadata) -> Option<(usize, CacheShape)> {
    let [tokens] = *metadata.info(TOKENS)?.shape else { return None };
    let key = metadata.info(&key_name(0))?;
    let [heads, _, row] = *key.shape else { return None };
    let layers = metadata.tensors().len().checked_sub(1)? / 2;
    let shape = CacheShape { layers, heads, row, kind: CacheDtype::of(key.dtype)? };
    (tokens > 0 && heads > 0 && row > 0).then_some((tokens, shape))
}

fn key_name(layer: usize) -> String {
    format!("past_key_values.{layer}.key")
}

impl PromptInfo {
    /// The time as [`saved_at`](Self::saved_at) has it.
    #[must_use]
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// All tensors in the order in which they lie; `None` where their sizes cannot be counted.
    fn tensors(&self) -> Option<Vec<(String, TensorInfo)>> {
        let Self { tokens, shape: CacheShape { layers, heads, row, kind }, .. } = *self;
        let mut end = tokens.checked_mul(size_of::<u32>())?;
        let of_tokens = TensorInfo { dtype: Dtype::U32, shape: vec![tokens], data_offsets: (0, end) };
        let mut infos = vec![(TOKENS.to_owned(), of_tokens)];
        let bytes = self.shape.tensor_bytes(tokens)?;
        for layer in 0..layers {
            for name in [key_name(layer), format!("past_key_values.{layer}.value")] {
                let start = end;
                end = start.checked_add(bytes)?;
                let shape = vec![heads, tokens, row];
                infos.push((name, TensorInfo { dtype: kind.dtype(), shape, data_offsets: (start, end) }));
            }
        }
        Some(infos)
    }
}
