//! Prompts saved to files: their tokens, and the keys and values computed from them.
//!
//! A file is a safetensors file, which many programs read:
//!
//! ```text
//! __metadata__                  eka_saved_prompt: "1", model, identity, saved_at, sha256 of all that follows the header
//! tokens                        u32 [positions]
//! past_key_values.{i}.key       [heads, positions, row]: float32, float16 or bfloat16 as the cache has them, or int8 with a
//! past_key_values.{i}.value     row's scales behind its numbers
//! ```
//!
//! A worker writes the file under a temporary name, syncs it and renames it. Only its owner may read it, because it holds user
//! text. A worker reads it without trust: every length is compared with the file's and with the model's, and no row is used
//! before the checksum over all rows matches. The parent reads headers only.
//!
//! Rows are in the order of this machine's bytes, which is little-endian wherever ONNX Runtime is published for.

mod error;
pub mod fuzzing;
mod header;
mod info;
mod name;
mod reader;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use self::{
    error::PromptStoreError,
    info::{CacheDtype, CacheShape, PromptInfo},
    name::{PromptName, PromptNameError},
    reader::{ExpectedPrompt, PromptReader},
    store::{PromptStore, StoredPrompt},
    writer::PromptWriter,
};
