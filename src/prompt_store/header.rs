//! The header of a file: its encoding and its checks.

use std::collections::HashMap;

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::{CacheDtype, CacheShape, PromptInfo, PromptStoreError, info::FORMAT};

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

/// The content of a header: the prompt's description and the checksum of the tensors.
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

    /// Decodes a header, without the length before it. Returns it and the number of bytes that follow it.
    pub(super) fn decode(json: &[u8]) -> Result<(Self, u64), PromptStoreError> {
        let refused = |message: &str| PromptStoreError::Header { message: message.into() };
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|e| PromptStoreError::Header { message: e.to_string() })?;
        let none = HashMap::new();
        let texts = metadata.metadata().as_ref().unwrap_or(&none);
        let text = |key: &str| texts.get(key).cloned();
        let format = text(FORMAT_KEY).ok_or_else(|| refused("it is not marked as a saved prompt"))?;
        if format != FORMAT {
            return Err(PromptStoreError::Format { found: format });
        }
        let missing = || refused("it has no model, time or SHA-256");
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
            return Err(refused("its tensors are not the keys and values of a cache"));
        }
        Ok((Self { head, sum: text(SUM_KEY).ok_or_else(missing)? }, metadata.data_len() as u64))
    }
}

/// Positions and sizes of the first tensors; the others are compared with them.
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
