//! What a graph says about its steps: whether they can be captured, and what bounds how fast they can be.

use std::{collections::BTreeSet, path::Path};

use prost::Message;

use crate::{
    manifest::{GraphNames, Lengths},
    onnx::{Graph, Model, Tensor},
    units::Bytes,
};

/// Operators that read a few rows of what they are given.
const READ_ROWS: [&str; 3] = ["Gather", "GatherBlockQuantized", "GroupQueryAttention"];

/// The graph at `path`; `None` where it cannot be read, about which ONNX Runtime says more.
fn read(path: &Path) -> Option<Graph> {
    Model::decode(&*std::fs::read(path).ok()?).ok()?.graph
}

/// Whether the steps of the graph at `path` can be captured as a CUDA graph and run again at another length: whether
/// attention alone reads the total length.
///
/// Only the device's own length may tell one step from the next. The total length is read on the host, when work is submitted:
/// attention takes it for an upper bound, so the whole cache's will do for every step. Whatever else reads it would compute
/// a step of that length: positions that are biased by their distance have a tensor of the total's shape.
pub(super) fn are_alike(path: &Path, names: &GraphNames) -> bool {
    let Lengths::Given { total_sequence_length: total, .. } = &names.lengths else { return false };
    read(path).is_some_and(|graph| {
        let mut reading = graph.node.iter().filter(|node| node.input.contains(total));
        reading.all(|node| node.op_type == "GroupQueryAttention")
    })
}

/// The bytes beside the graph at `path` that every step reads, whatever it computes; `None` where the graph cannot be read.
pub(super) fn weights_read(path: &Path) -> Option<Bytes> {
    let graph = read(path)?;
    let reading = graph.node.iter().filter(|node| !READ_ROWS.contains(&&*node.op_type));
    let read: BTreeSet<&str> = reading.flat_map(|node| &node.input).map(String::as_str).collect();
    let tensors = graph.initializer.iter().filter(|tensor| read.contains(&*tensor.name));
    let length = |tensor: &Tensor| {
        let entry = tensor.external_data.iter().find(|entry| entry.key == "length")?;
        entry.value.parse::<u64>().ok()
    };
    Some(Bytes(tensors.filter_map(length).sum()))
}
