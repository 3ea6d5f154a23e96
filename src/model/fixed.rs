//! Whether the steps of a graph can be captured as a CUDA graph and run again at another length.
//!
//! Only the device's own length may tell one step from the next. The total length is read on the host, when work is submitted:
//! attention takes it for an upper bound, so the whole cache's will do for every step. Whatever else reads it would compute
//! a step of that length: positions that are biased by their distance have a tensor of the total's shape.

use std::path::Path;

use prost::Message;

use crate::{
    manifest::{GraphNames, Lengths},
    onnx,
};

/// Whether attention alone reads the total length. `false` as well where the graph cannot be read: then ONNX Runtime says
/// more about it.
pub(super) fn has_steps_alike(path: &Path, names: &GraphNames) -> bool {
    let Lengths::Given { total_sequence_length: total, .. } = &names.lengths else { return false };
    let graph = std::fs::read(path).ok().and_then(|content| onnx::Model::decode(&*content).ok()?.graph);
    graph.is_some_and(|graph| {
        graph
            .node
            .iter()
            .filter(|node| node.input.contains(total))
            .all(|node| node.op_type == "GroupQueryAttention")
    })
}
