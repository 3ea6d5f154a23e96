//! Which nodes of a graph our own operators stand in for.
//!
//! The graph is changed in memory, when it is loaded: a node that multiplies by int4 weights becomes one of
//! [`operators`](crate::device::operators), and its weights are read from the data file into the layout that it wants, so
//! that ONNX Runtime never maps them. Only what is understood to the last byte is changed: a graph that we cannot write
//! back exactly as it is, such as one made by others, is left alone, and so is every node of another kind.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use prost::Message;

use crate::{
    device::operators::{Blocks, DOMAIN, MATMUL, MATRIX, Matrix, Operators},
    onnx::{Attribute, AttributeType, DataLocation, ElementType, Graph, Model, Node, OperatorSet, Tensor},
};

/// A graph with operators of ours in it.
pub(super) struct Changed {
    /// In place of the content of `model.onnx`.
    pub(super) content: Vec<u8>,
    pub(super) operators: Operators,
}

/// The graph at `path` with our operators where they do the same; `None` where there is nothing to change, or something
/// that is not understood, about which ONNX Runtime will say more than we could.
pub(super) fn change(path: &Path) -> Option<Changed> {
    let content = std::fs::read(path).ok()?;
    let mut model = Model::decode(&*content).ok()?;
    if model.encode_to_vec() != content {
        return None;
    }
    let graph = model.graph.as_mut()?;
    let operators = replace(graph, path.parent()?)?;
    if operators.is_empty() {
        return None;
    }
    drop_unused(graph);
    model.opset_import.push(OperatorSet { domain: DOMAIN.into(), version: 1 });
    Some(Changed { content: model.encode_to_vec(), operators })
}

/// Replaces the nodes that it can.
fn replace(graph: &mut Graph, dir: &Path) -> Option<Operators> {
    let mut operators = Operators::default();
    let mut data = Data { dir, files: BTreeMap::new() };
    let initializers: BTreeMap<&str, &Tensor> =
        graph.initializer.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    for node in &mut graph.node {
        let Some(matrix) = matrix(node, &initializers, &mut data) else { continue };
        let number = i64::try_from(operators.add(matrix)).ok()?;
        node.input.truncate(1);
        (node.domain, node.op_type) = (DOMAIN.into(), MATMUL.into());
        let r#type = AttributeType::Int.into();
        node.attribute = vec![Attribute { name: MATRIX.into(), f: None, i: Some(number), r#type }];
    }
    Some(operators)
}

/// What `node` multiplies by, if it is a product that an operator of ours computes as well.
fn matrix(node: &Node, initializers: &BTreeMap<&str, &Tensor>, data: &mut Data) -> Option<Matrix> {
    let number = |name: &str| {
        let attribute = node.attribute.iter().find(|attribute| attribute.name == name)?;
        usize::try_from(attribute.i?).ok()
    };
    let [_, codes, scales] = &node.input[..] else { return None };
    if node.op_type != "MatMulNBits" || number("bits") != Some(4) || number("accuracy_level") != Some(4) {
        return None;
    }
    let (codes, scales) = (initializers.get(&**codes)?, initializers.get(&**scales)?);
    if codes.data_type != i32::from(ElementType::Uint8) || scales.data_type != i32::from(ElementType::Float) {
        return None;
    }
    let (columns, depth, block) = (number("N")?, number("K")?, number("block_size")?);
    let scales: Vec<f32> =
        data.of(scales)?.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Matrix::new(Blocks { columns, depth, block, codes: &data.of(codes)?, scales: &scales })
}

/// Drops initializers that no node reads any more.
fn drop_unused(graph: &mut Graph) {
    let read: BTreeSet<String> = graph.node.iter().flat_map(|node| node.input.clone()).collect();
    graph.initializer.retain(|tensor| read.contains(&tensor.name));
}

/// The files beside a graph. They are read and not mapped: what is read is laid out anew and not looked at again.
struct Data<'a> {
    dir: &'a Path,
    files: BTreeMap<String, File>,
}

impl Data<'_> {
    /// The bytes of `tensor`, if they lie in a file beside the graph.
    fn of(&mut self, tensor: &Tensor) -> Option<Vec<u8>> {
        let entry =
            |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let number = |key: &str| entry(key)?.parse::<u64>().ok();
        if tensor.data_location != i32::from(DataLocation::External) {
            return None;
        }
        let (name, start, length) = (entry("location")?, number("offset")?, number("length")?);
        let file = match self.files.entry(name.into()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(File::open(self.dir.join(name)).ok()?),
        };
        if file.metadata().ok()?.len() < start.checked_add(length)? {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.seek(SeekFrom::Start(start)).ok()?;
        file.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}
