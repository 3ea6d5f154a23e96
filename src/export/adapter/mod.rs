//! PEFT adapters, and their merge into a base.
//!
//! ```text
//! adapter_config.json ───► adapter_config, patterns ──┐
//! adapter_model.safetensors ───► tensors ─────────────┴─► Adapter ─┐
//!                                                  another one ────┴─► merge_plan ──► merge, some rows at a time
//! the base's blueprint ───────────────────────► target_modules ────────────┘
//! ```
//!
//! The result is the model that was trained, as PEFT 0.21 runs it without a merge, in float32. That is its
//! `merge_and_unload` except for a head that is tied to the embedding. Points that may surprise:
//!
//! - A head that is tied to the embedding shares its table. An adapter that changes one of the two, by low-rank matrices or
//!   because it has it whole (`modules_to_save`), unties them: the other keeps the base's table. PEFT's merge of low-rank
//!   matrices would change both. With `ensure_weight_tying` the file has the same product for both.
//! - DoRA gives every row of a linear layer its own length, but every *column* of an embedding.
//! - A weight or a scale other than one multiplies the product of the low-rank matrices, also below DoRA's magnitudes,
//!   and the biases beside them. What an adapter has whole stays as it is.
//! - Every tensor of an adapter is used, or the export fails and names it. PEFT would only warn.

mod adapter_config;
mod deltas;
mod error;
mod expert_product;
mod experts;
mod merge;
mod merge_error;
mod merge_plan;
mod node_delta;
mod patterns;
mod peft_adapter;
mod target_modules;
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::AdapterError;
pub(super) use self::{
    error::CONFIG,
    merge_error::MergeError,
    merge_plan::{MergePlan, Origin},
    node_delta::{NodeDelta, PairDelta},
    peft_adapter::{Adapter, check_settings},
};
