//! Turns a checkpoint and its adapters into a model directory: one graph that ONNX Runtime runs as it is.
//!
//! ```text
//! config.json ─► architectures ─► blueprint ──► emit ──┬──► model.onnx
//!                                 │                    └──► data_layout ──┐
//! *.safetensors ─► checkpoint ────┤ checked against                       ▼
//! adapter ───────► adapter ───────┘              ──► weights ──► write_weights ──► model.onnx.data
//! ```
//!
//! A GGUF file is read as such a checkpoint (`gguf`), PyTorch's `.bin` files as such tensors (`torch`), other
//! tokenizers as `tokenizer.json` (`tokenizer`).
//!
//! All errors are found before anything is written, except for weights that are not finite. Then the layout of the data file
//! is fixed, and a pool of threads fills it a few megabytes at a time, so that a model far larger than memory can be
//! exported. The same sources and options give the same bytes.
//!
//! Nothing here needs ONNX Runtime: a model can be exported on a machine that could not run it.
//!
//! # What quantization costs
//!
//! On the demonstration model with its adapter, over translations of every fifth phrase of its phrasebook into all ten
//! languages, written as its chats are: mean divergence from float32 (KL, in nats a token), perplexity as a multiple of
//! float32's (3.815), and bits per weight of the file, as `eka export --report` prints them. These files had scales of 32 bits; with 16
//! bits, files in blocks of 32 are half a bit per weight smaller.
//!
//! | | blocks of 32 | 64 | 128 |
//! |---|---|---|---|
//! | int8 | 0.0003, 1.001, 9.4 bits | | |
//! | int4 | 0.0202, 1.022, 6.5 bits | 0.0229, 1.005, 5.9 bits | 0.0251, 0.998, 9.1 bits |
//! | int4, zero points | 0.0172, 1.006, 6.9 bits | 0.0221, 0.986, 6.3 bits | 0.0241, 0.986, 9.4 bits |
//! | int4, the tied table too | 0.0311, 1.060, 5.6 bits | | |
//! | int4, layer 0 in int8 | 0.0065, 0.999, 7.0 bits | | |
//! | int4, plain rounding | 0.0191, 1.017 | 0.0268, 1.029 | 0.0286, 1.021 |
//! | int4, zero points, plain rounding | 0.0180, 0.999 | 0.0237, 1.001 | 0.0272, 1.001 |
//!
//! A perplexity is one draw: it moves by a percent or two with whatever changes the rounding, and below one is luck. The
//! divergence is steadier. Over the whole phrasebook, int4 in blocks of 32 has 1.015 times the perplexity of float32 as
//! chats (1.021 with plain rounding), 1.003 as lists of one language (1.007), 1.0004 as bare lines (1.009). So
//! blocks of 32 are the default: they run as fast on a CPU as the others, within what can
//! be measured. A tied table has a separate row in the table above: by default it stays in int8 among int4, which brings the
//! perplexity within the three percent that we ask for. Rows of 192 do not fill blocks of 128: padding, and a head that
//! could not share the embedding's bytes, made the coarsest blocks the largest file here. Such rows now get shorter blocks.

mod adapter;
mod adapter_base;
mod architectures;
mod bit_budget;
mod blueprint;
mod calibration;
mod checkpoint;
mod data_layout;
mod disk;
mod dtype_encoding;
mod emit;
mod error;
mod feed_forward;
mod formats;
#[doc(hidden)]
pub mod fuzzing;
mod genai;
mod gguf;
mod graph;
mod head_layout;
mod inspect;
mod json_config;
mod known_blocks;
mod load_sources;
mod modules;
mod observe;
mod options;
mod packed;
mod param;
mod positioned_io;
mod progress;
mod provenance;
mod quantize;
mod random;
mod rope;
mod routing;
mod run;
mod safetensors_header;
mod staging;
mod stored_experts;
mod stored_type;
mod supported_heads;
mod temp_dir;
mod tensor_names;
mod tensors;
mod tensors_error;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tokenizer_files;
mod torch;
mod unmerged;
mod weights;
mod write_weights;
mod written_pieces;

pub use self::{
    adapter::AdapterError,
    bit_budget::{BudgetError, BudgetTooSmall},
    calibration::{Calibration, gram_parts},
    checkpoint::CheckpointError,
    data_layout::TooLarge,
    error::ExportError,
    formats::{Keep, KeepError, NoSuchModule, Storage},
    gguf::{GgufError, is_gguf},
    inspect::{InspectError, Operator, identify, operators},
    json_config::JsonConfigError,
    observe::{ObservedInput, ObservedModel},
    options::{AdapterSource, Layout, Options, Source},
    progress::{Progress, Stage},
    provenance::SourceError,
    quantize::{Rounding, ZeroPoints},
    run::{Report, check, export, fingerprint},
    staging::{Existing, StagingError},
    tensors_error::TensorsError,
    tokenizer::TokenizerError,
    tokenizer_files::TokenizerFilesError,
    unmerged::{AdapterOptions, AdapterReport, UnmergedError, export_adapter, is_exported},
    weights::WeightsError,
    write_weights::WriteWeightsError,
};
pub use crate::device_spec::{BitBudget, BitBudgetError, BlockSize, BlockSizeError, WeightFormat};
