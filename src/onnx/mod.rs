//! The part of ONNX that a graph with external weights needs.
//!
//! Names and field numbers are those of `onnx/onnx.proto` (package `onnx`, IR version 10), written by hand: the whole
//! schema would bring a code generator and a build script for the few messages below. Values of attributes are
//! optional here, unlike in proto3, because a value of zero must be written to be seen.

pub(crate) mod external;
pub(crate) mod gqa;
pub(crate) mod moe;
mod proto;

pub(crate) use self::proto::{
    Attribute, AttributeType, DataLocation, Dimension, ElementType, Extent, Function, Graph, IR_VERSION,
    Model, Node, OperatorSet, Shape, StringEntry, Tensor, TensorType, Type, ValueInfo,
};
