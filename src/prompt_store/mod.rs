//! Prompts that were read once and are kept in files: their tokens, and the keys and values that were computed of them.
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
//! It is written by a worker, under a name that nobody looks for, synced and then renamed, and only its owner may read it: it
//! holds what users wrote. It is read by a worker that trusts nothing in it: no length is believed before it was compared with
//! the file's and with the model's, and no row is used before the sum over all of them was right. The parent reads headers
//! alone.
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
