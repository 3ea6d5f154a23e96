//! Weights that another program has packed, read as float32.
//!
//! Every format stores a matrix `[out, in]` as several tensors named after its module. They are read here some outputs at a
//! time, with the arithmetic of transformers in single precision, so that adapters are merged and weights quantized as if
//! the checkpoint were not packed.

mod decode;
mod float8;
mod matrix;
mod settings;

pub(super) use self::{
    matrix::{PackedMatrix, Part},
    settings::Packing,
};
