//! PEFT adapters, and their merge into a base.
//!
//! ```text
//! adapter_config.json ───► adapter_config, patterns ──┐
//! adapter_model.safetensors ───► tensors ─────────────┴─► Adapter ─┐
//!                                                  another one ────┴─► merge_plan ──► merge, some rows at a time
//! the base's blueprint ───────────────────────► target_modules ────────────┘
//! ```
//!
//! The result is that of PEFT 0.21's `merge_and_unload`, in float32. Points that may surprise:
//!
//! - A head that is tied to the embedding shares its table. A low-rank delta of one of the two is added to both, as in
//!   PEFT's merge; unmerged, PEFT changes only the one. An adapter that has one of the two
//!   whole (`modules_to_save`) unties them: the other keeps the base's table. With low-rank matrices and
//!   `ensure_weight_tying` the file has the same product for both, and PEFT adds it twice.
//! - DoRA gives every row of a linear layer its own length, but every *column* of an embedding.
//! - A weight or a scale other than one multiplies the product of the low-rank matrices, also below DoRA's magnitudes,
//!   and the biases beside them. What an adapter has whole stays as it is.
//! - Every tensor of an adapter is used, or the export fails and names it. PEFT would only warn.

mod adapter_config;
mod deltas;
mod error;
mod merge;
mod merge_plan;
mod patterns;
mod peft_adapter;
mod target_modules;
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::AdapterError;
pub(super) use self::{
    error::CONFIG,
    merge::MergeError,
    merge_plan::{MergePlan, Origin},
    peft_adapter::{Adapter, check_settings},
};
