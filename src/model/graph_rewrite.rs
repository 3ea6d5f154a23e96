//! Replaces nodes of a graph by eka's operators.
//!
//! The graph is changed in memory when it is loaded: a node that multiplies by int4 weights becomes one of
//! [`operators`](crate::device::operators), and its weights are read from the data file into that operator's layout, so that
//! ONNX Runtime never maps them. Attention nodes are replaced as well; if all of them are, the key-value cache may be stored
//! in fewer bytes, and its inputs and outputs get that type. A graph that does not encode back to the same bytes, such as one
//! from another exporter, is not changed, and neither are nodes of other kinds.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::File,
    io,
    path::Path,
};

use bytemuck::Pod;
use prost::Message;

use super::graph_file::GraphFile;
use crate::{
    device::operators::{
        ATTENTION, DOMAIN, Format, Int4Blocks, MATMUL, MATRIX, Operators, PackedInt4, PackedStorage,
    },
    device_spec::CacheChoice,
    files,
    onnx::{
        Attribute, AttributeType, DataLocation, Dimension, ElementType, Extent, Graph, Model, Node,
        OperatorSet, Tensor, TensorType, ValueInfo,
    },
};

/// A graph with eka's operators in it.
pub(super) struct RewrittenGraph {
    /// Replaces the content of `model.onnx`.
    pub(super) content: Vec<u8>,
    pub(super) operators: Operators,
}

/// The graph in `file` with our operators where they do the same; `None` where there is nothing to change, or something
/// that cannot be decoded, for which ONNX Runtime has the better error. The key-value cache is stored as `cache`, if eka's
/// attention runs.
pub(super) fn rewrite(file: &GraphFile, cache: CacheChoice) -> Option<RewrittenGraph> {
    let mut model = understood(file)?;
    let graph = model.graph.as_mut()?;
    let format = format(graph, cache);
    let mut operators = replace(graph, file.path().parent()?)?;
    if let Some(format) = attend(graph, format) {
        operators.attend(format);
    }
    if operators.is_empty() {
        return None;
    }
    drop_unused(graph);
    model.opset_import.push(OperatorSet { domain: DOMAIN.into(), version: 1 });
    Some(RewrittenGraph { content: model.encode_to_vec(), operators })
}

/// The format of the key-value cache where eka's operators compute; `None` if the attention of the graph in `file` cannot be
/// replaced.
pub(super) fn cache_format(file: &GraphFile, cache: CacheChoice) -> Option<Format> {
    let mut graph = understood(file)?.graph?;
    let format = format(&graph, cache);
    attend(&mut graph, format)
}

/// The graph in `file`, if it can be written back exactly as it is.
fn understood(file: &GraphFile) -> Option<Model> {
    let model = file.decode()?;
    (model.encode_to_vec() == file.content()?).then_some(model)
}

fn format(graph: &Graph, cache: CacheChoice) -> Format {
    let is_quantized = graph.node.iter().any(|node| node.op_type == "MatMulNBits");
    match cache {
        CacheChoice::Float32 => Format::Float32,
        CacheChoice::Auto if !is_quantized => Format::Float32,
        CacheChoice::Auto | CacheChoice::Float16 => Format::Float16,
        CacheChoice::Int8 => Format::Int8,
    }
}

/// Replaces the nodes that it can.
fn replace(graph: &mut Graph, dir: &Path) -> Option<Operators> {
    let mut operators = Operators::default();
    let mut data = ExternalData { dir, files: BTreeMap::new() };
    let mut room = Scratch::default();
    let initializers: BTreeMap<&str, &Tensor> =
        graph.initializer.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    for node in &mut graph.node {
        let Some(matrix) = matrix(node, &initializers, &mut data, &mut room) else { continue };
        let number = i64::try_from(operators.add(matrix)).ok()?;
        node.input.truncate(1);
        (node.domain, node.op_type) = (DOMAIN.into(), MATMUL.into());
        let r#type = AttributeType::Int.into();
        node.attribute = vec![Attribute { name: MATRIX.into(), f: None, i: Some(number), r#type }];
    }
    Some(operators)
}

/// The matrix of `node`, if it is a product that eka's operator can compute.
fn matrix(
    node: &Node,
    initializers: &BTreeMap<&str, &Tensor>,
    data: &mut ExternalData,
    room: &mut Scratch,
) -> Option<PackedInt4> {
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
    data.read(codes, &mut room.codes)?;
    data.read(scales, &mut room.scales)?;
    // Files are little-endian.
    room.scales.iter_mut().for_each(|scale| *scale = f32::from_bits(u32::from_le(scale.to_bits())));
    let source = Int4Blocks { columns, depth, block, codes: &room.codes, scales: &room.scales };
    PackedInt4::new(source, &mut room.laid_out)
}

/// Buffers that are reused from one tensor to the next, because new memory costs more than the read itself: what is read, and
/// the packed matrices.
#[derive(Default)]
struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    laid_out: PackedStorage,
}

/// Replaces the attention nodes that can be. Returns the format of the key-value cache then: `format`, or float32 if some nodes
/// were not replaced; `None` if none were.
fn attend(graph: &mut Graph, format: Format) -> Option<Format> {
    let is_attention = |node: &&mut Node| node.op_type == "GroupQueryAttention";
    let (nodes, declared) = (&mut graph.node, graph.input.iter().chain(&graph.output));
    let heads: BTreeMap<String, u64> =
        declared.filter_map(|value| Some((value.name.clone(), cached_floats(value)?))).collect();
    let (mut cached, mut is_whole) = (BTreeSet::new(), true);
    for node in nodes.iter_mut().filter(is_attention) {
        let places = node.input.get(3..5).into_iter().chain(node.output.get(1..3)).flatten();
        let places: Vec<String> = places.cloned().collect();
        if !is_ours(node) || places.len() != 4 || !places.iter().all(|place| heads.contains_key(place)) {
            is_whole = false;
            continue;
        }
        (node.domain, node.op_type) = (DOMAIN.into(), ATTENTION.into());
        node.input.truncate(9);
        cached.extend(places);
    }
    if cached.is_empty() {
        return None;
    }
    let format = if is_whole { format } else { Format::Float32 };
    let element = match format {
        Format::Float32 => ElementType::Float,
        Format::Float16 => ElementType::Float16,
        Format::Int8 => ElementType::Int8,
    };
    for value in graph.input.iter_mut().chain(&mut graph.output).filter(|value| cached.contains(&value.name))
    {
        let Some(declared) = value.r#type.as_mut().and_then(|declared| declared.tensor_type.as_mut()) else {
            continue;
        };
        declared.elem_type = element.into();
        if let (Some(row), Some(head_dim)) = (last_dimension(declared), heads.get(&value.name)) {
            let elements = format.elements(usize::try_from(*head_dim).unwrap_or(usize::MAX));
            row.value = Some(Extent::Known(i64::try_from(elements).unwrap_or(i64::MAX)));
        }
    }
    Some(format)
}

/// The size of a head, if this may be a key-value cache in float32 of which it is known.
fn cached_floats(value: &ValueInfo) -> Option<u64> {
    let declared = value.r#type.as_ref()?.tensor_type.as_ref()?;
    let dimensions = &declared.shape.as_ref()?.dim;
    match dimensions.last()?.value {
        Some(Extent::Known(head_dim))
            if declared.elem_type == i32::from(ElementType::Float) && dimensions.len() == 4 =>
        {
            u64::try_from(head_dim).ok()
        }
        _ => None,
    }
}

fn last_dimension(declared: &mut TensorType) -> Option<&mut Dimension> {
    declared.shape.as_mut()?.dim.last_mut()
}

/// Whether our attention computes what this node does: no bias, no sinks, no quantized cache, nothing that it has not heard
/// of.
fn is_ours(node: &Node) -> bool {
    let is_given = |i: usize| node.input.get(i).is_some_and(|name| !name.is_empty());
    let number = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name)?.i;
    let is_known = |attribute: &Attribute| match &*attribute.name {
        "num_heads" | "kv_num_heads" | "do_rotary" | "local_window_size" => attribute.i.is_some(),
        "scale" | "softcap" => attribute.f.is_some(),
        "rotary_interleaved" => attribute.i == Some(0),
        _ => false,
    };
    let is_rotary = number("do_rotary") == Some(1);
    [0, 3, 4, 5, 6].into_iter().all(is_given)
        && is_given(1) == is_given(2)
        && (9..node.input.len()).all(|i| !is_given(i))
        && is_rotary == is_given(7)
        && is_rotary == is_given(8)
        && node.output.len() == 3
        && node.attribute.iter().all(is_known)
}

/// Drops initializers that no node reads any more.
fn drop_unused(graph: &mut Graph) {
    let read: BTreeSet<String> = graph.node.iter().flat_map(|node| node.input.clone()).collect();
    graph.initializer.retain(|tensor| read.contains(&tensor.name));
}

/// The files beside a graph. They are read and not mapped, since each tensor is repacked and read only once.
struct ExternalData<'a> {
    dir: &'a Path,
    files: BTreeMap<String, File>,
}

impl ExternalData<'_> {
    /// Reads `tensor` into `room`, if it lies in a file beside the graph.
    fn read<T: Pod>(&mut self, tensor: &Tensor, room: &mut Vec<T>) -> Option<()> {
        let entry =
            |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let number = |key: &str| entry(key)?.parse::<u64>().ok();
        if tensor.data_location != i32::from(DataLocation::External) {
            return None;
        }
        let (name, start, length) = (entry("location")?, number("offset")?, number("length")?);
        let file = match self.files.entry(name.into()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(files::open(&self.dir.join(name)).ok()?),
        };
        let bytes = usize::try_from(length).ok()?;
        if file.metadata().ok()?.len() < start.checked_add(length)? || !bytes.is_multiple_of(size_of::<T>()) {
            return None;
        }
        room.resize(bytes / size_of::<T>(), T::zeroed());
        read_at(file, bytemuck::cast_slice_mut(room), start).ok()
    }
}

/// Fills `bytes` from `start` on, by all threads at once.
#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 20;
    bytes.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, piece)| {
        std::os::unix::fs::FileExt::read_exact_at(file, piece, start + (i * PIECE) as u64)
    })
}

/// Fills `bytes` from `start` on.
#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use io::{Read, Seek};
    let mut file = file;
    file.seek(io::SeekFrom::Start(start))?;
    file.read_exact(bytes)
}
