//! The description of a saved prompt: its model, its length, and the sizes of its keys and values.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use safetensors::Dtype;

use crate::units::Bytes;

/// The format that is written, and the only one that is read.
pub(super) const FORMAT: &str = "1";

/// Description of a saved prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptInfo {
    /// Name of the model that computed it.
    pub model: String,
    /// Identity of that model's files, independent of its name.
    pub identity: String,
    /// When it was saved, in seconds since 1970.
    pub saved_at: u64,
    /// Positions, one a token.
    pub tokens: usize,
    /// The keys and values of one position.
    pub shape: CacheShape,
}

impl PromptInfo {
    /// The current time, for [`saved_at`](Self::saved_at).
    #[must_use]
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
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
    /// Type of an element.
    pub kind: CacheDtype,
}

impl CacheShape {
    /// Layers, heads and elements a row.
    #[must_use]
    pub const fn sizes(self) -> [usize; 3] {
        [self.layers, self.heads, self.row]
    }

    /// Bytes of one layer's keys, or of its values, for `positions`; `None` on overflow.
    #[must_use]
    pub fn tensor_bytes(self, positions: usize) -> Option<usize> {
        [self.heads, positions, self.row].into_iter().try_fold(self.kind.bytes(), usize::checked_mul)
    }

    /// Bytes of all keys and values for `positions`; `usize::MAX` on overflow.
    #[must_use]
    pub fn bytes(self, positions: usize) -> Bytes {
        let all = self.tensor_bytes(positions).and_then(|one| one.checked_mul(2)?.checked_mul(self.layers));
        Bytes::from(all.unwrap_or(usize::MAX))
    }
}

/// Type that keys and values are stored in.
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
    pub(super) const fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Float16 => Dtype::F16,
            Self::Bfloat16 => Dtype::BF16,
            Self::Int8 => Dtype::I8,
        }
    }

    pub(super) fn of(dtype: Dtype) -> Option<Self> {
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
