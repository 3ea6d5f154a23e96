//! Inspects an exported graph.

use std::{collections::BTreeMap, path::Path};

use prost::Message;

use crate::manifest::FileRecord;
use crate::onnx::{Model, Node};

use super::SourceError;

/// A file that is not an ONNX graph.
#[derive(Debug, thiserror::Error)]
#[error("not an ONNX graph: {0}; export the model again")]
pub struct InspectError(#[from] prost::DecodeError);

/// An operator, and how many nodes of a graph it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Empty for ONNX itself.
    pub domain: String,
    /// For example `MatMulNBits`.
    pub name: String,
    /// Nodes.
    pub nodes: usize,
}

/// The operators of `graph`, the content of `model.onnx`, the most frequent first.
///
/// # Errors
/// [`InspectError`] when it is not an ONNX graph.
pub fn operators(graph: &[u8]) -> Result<Vec<Operator>, InspectError> {
    let nodes = Model::decode(graph)?.graph.unwrap_or_default().node;
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for Node { domain, op_type, .. } in nodes {
        *counts.entry((domain, op_type)).or_default() += 1;
    }
    let operator = |((domain, name), nodes)| Operator { domain, name, nodes };
    let mut operators: Vec<_> = counts.into_iter().map(operator).collect();
    operators.sort_by_key(|operator| std::cmp::Reverse(operator.nodes));
    Ok(operators)
}

/// Size and SHA-256 of the file at `path`.
///
/// # Errors
/// [`SourceError`] when it cannot be read.
pub fn identify(path: &Path) -> Result<FileRecord, SourceError> {
    super::provenance::identify("", path, &())
}
