//! Exports an adapter that stays beside its base: `adapters/NAME` in a model directory.
//!
//! The adapter is laid out over the base by the same [merge plan](super::adapter) as for a merge, so it passes the same checks:
//! every tensor is used, or the export fails and names it. Instead of merging, the matrices of each layer are written by the
//! name of the graph's node that computes the layer:
//!
//! ```text
//! adapter_base.json ─► blueprint ─┐
//! adapter ────────────────────────┴─► merge plan ─► node deltas ──┬──► adapter.safetensors
//! model.onnx.data ─► served weights ─► lengths of DoRA's columns ─┘
//! ```
//!
//! Only what linear layers compute can be beside a base: low-rank matrices, DoRA's magnitudes, biases, and norms that
//! [only linear layers read](input_change). Embeddings and other modules that are saved whole must be merged, and the error says
//! so.
//!
//! # Numbers
//! Matrices of 16 bits stay in 16 bits, as float16: bfloat16 is scaled by a power of two first, so that its range fits. Others are
//! float32. DoRA needs the length of `W + weight · scale · B·A` for each column of the product, and the weight is known with the request
//! only: the squared length of `W`, that of `scale · B·A` and their scalar product are stored, which give it for every weight. `W` are the
//! weights as they are served, quantized or not.

mod column_lengths;
mod error;
mod input_change;
mod run;
mod served_weights;
mod tensors;

pub use self::{
    error::UnmergedError,
    run::{AdapterOptions, AdapterReport, export_adapter, is_exported},
};
