//! What a graph reads of its weights in each step: the bytes that bound how fast it can be.

use std::{collections::BTreeSet, path::Path};

use prost::Message;

use crate::{onnx, units::Bytes};

/// Operators that read a few rows of what they are given.
const READ_ROWS: [&str; 3] = ["Gather", "GatherBlockQuantized", "GroupQueryAttention"];

/// The bytes beside the graph at `path` that every step reads, whatever it computes; `None` where the graph cannot be read.
pub(super) fn weights_read(path: &Path) -> Option<Bytes> {
    let graph = onnx::Model::decode(&*std::fs::read(path).ok()?).ok()?.graph?;
    let reading = graph.node.iter().filter(|node| !READ_ROWS.contains(&&*node.op_type));
    let read: BTreeSet<&str> = reading.flat_map(|node| &node.input).map(String::as_str).collect();
    let tensors = graph.initializer.iter().filter(|tensor| read.contains(&*tensor.name));
    let length = |tensor: &onnx::Tensor| {
        let entry = tensor.external_data.iter().find(|entry| entry.key == "length")?;
        entry.value.parse::<u64>().ok()
    };
    Some(Bytes(tensors.filter_map(length).sum()))
}
