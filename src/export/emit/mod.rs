//! Turns a blueprint into a graph and a plan of the data file.
//!
//! There is no shape arithmetic in the graph: lengths are inputs, and constants do the rest, so that every node runs on
//! the provider asked for. What a model does not use is not emitted. Only a graph for onnxruntime-genai works its lengths
//! out from a mask, as that runtime has nothing else to give.

mod attention;
mod emitter;
mod linear;
mod matrix;
mod mlp;
mod model;
mod positions;

pub(super) use self::{
    emitter::Precision,
    model::{Emitted, emit},
};
