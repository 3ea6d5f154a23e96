//! Turns a blueprint into a graph and a plan of the data file.
//!
//! There is no shape arithmetic in the graph: lengths are inputs, and constants do the rest, so that every node runs on
//! the provider asked for. Parts that a model does not use are not emitted. Only a graph for onnxruntime-genai computes its
//! lengths from a mask, the only input that that runtime provides.

mod attention;
mod emitter;
mod linear;
mod matrix;
mod mlp;
mod model;
mod moe;
mod moe_function;
mod per_layer;
mod positions;

pub(super) use self::{
    emitter::{LayerInput, Precision, ProductNode},
    model::{Emitted, emit},
};
