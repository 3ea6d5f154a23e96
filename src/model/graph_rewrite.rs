//! Replaces nodes of a graph by eka's operators.
//!
//! The graph is changed in memory when it is loaded. Products become nodes of [`operators`](crate::device::operators):
//! `MatMulNBits` with int4 or int8 weights and `accuracy_level` 4, whose weights are read from the data file into the
//! operator's layout so that ONNX Runtime never maps them; and `FusedMatMul` with float weights, which stay as they are.
//! Attention nodes are replaced as well; if all of them are, the key-value cache may be stored in fewer bytes, and its
//! inputs and outputs get that type. Operators compute in float32: around one in a float16 graph there are casts.
//!
//! A graph that does not encode back to the same bytes, such as one from another exporter, is not changed, and neither are
//! nodes of other kinds.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::File,
    io,
    path::Path,
};

use bytemuck::Pod;
use half::f16;
use prost::Message;

use super::graph_file::GraphFile;
use crate::{
    device::operators::{
        ATTENTION, DOMAIN, Format, MATMUL_FLOAT16, MATMUL_FLOAT32, MATMUL_INT4, MATMUL_INT8, MATRIX,
        Operators, PackedStorage, PackedWeights, QuantizedBlocks, WeightBits,
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
    /// Whether every node gives a row the same bits whatever other rows it is computed with.
    pub(super) is_row_invariant: bool,
}

/// Operators of ONNX Runtime that compute each row, or each number, by itself.
const ROW_BY_ROW: [&str; 23] = [
    "Add",
    "Cast",
    "Concat",
    "CumSum",
    "Div",
    "FastGelu",
    "Gather",
    "GatherBlockQuantized",
    "Gelu",
    "LayerNormalization",
    "Mul",
    "QuickGelu",
    "Range",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Sub",
    "Tanh",
    "Unsqueeze",
];

/// The graph in `file` with eka's operators wherever they compute the same. `None` if there is nothing to replace, or if the
/// graph
/// cannot be decoded: ONNX Runtime then loads the file and reports the better error. `cache` is the type of the key-value cache;
/// it
/// applies only if every attention node is replaced.
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
    cast(graph);
    drop_unused(graph);
    let is_row_invariant =
        graph.node.iter().all(|node| node.domain == DOMAIN || ROW_BY_ROW.contains(&&*node.op_type));
    model.opset_import.push(OperatorSet { domain: DOMAIN.into(), version: 1 });
    Some(RewrittenGraph { content: model.encode_to_vec(), operators, is_row_invariant })
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

/// Replaces the products that eka's operators support, and packs quantized weights.
fn replace(graph: &mut Graph, dir: &Path) -> Option<Operators> {
    let mut operators = Operators::default();
    let mut data = ExternalData { dir, files: BTreeMap::new() };
    let mut room = Scratch::default();
    let initializers: BTreeMap<&str, &Tensor> =
        graph.initializer.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    for node in &mut graph.node {
        if let Some(operator) = float_product(node, &initializers) {
            operators.add_float_products();
            (node.domain, node.op_type) = (DOMAIN.into(), operator.into());
            node.attribute = Vec::new();
            continue;
        }
        let Some((matrix, operator)) = matrix(node, &initializers, &mut data, &mut room) else { continue };
        let number = i64::try_from(operators.add(matrix)).ok()?;
        node.input.truncate(1);
        (node.domain, node.op_type) = (DOMAIN.into(), operator.into());
        let r#type = AttributeType::Int.into();
        node.attribute = vec![Attribute { name: MATRIX.into(), f: None, i: Some(number), r#type }];
    }
    Some(operators)
}

/// The operator that computes what `node` does, if that is a product with a matrix `[columns, depth]` of float weights.
fn float_product(node: &Node, initializers: &BTreeMap<&str, &Tensor>) -> Option<&'static str> {
    let [_, weights] = &node.input[..] else { return None };
    let [attribute] = &node.attribute[..] else { return None };
    let weights = initializers.get(&**weights)?;
    let is_transposed = attribute.name == "transB" && attribute.i == Some(1);
    if node.op_type != "FusedMatMul" || !is_transposed || weights.dims.len() != 2 {
        return None;
    }
    match ElementType::try_from(weights.data_type) {
        Ok(ElementType::Float) => Some(MATMUL_FLOAT32),
        Ok(ElementType::Float16) => Some(MATMUL_FLOAT16),
        _ => None,
    }
}

/// The packed weights of `node` and the operator for them, if it is a `MatMulNBits` that eka's operators support.
fn matrix(
    node: &Node,
    initializers: &BTreeMap<&str, &Tensor>,
    data: &mut ExternalData,
    room: &mut Scratch,
) -> Option<(PackedWeights, &'static str)> {
    let number = |name: &str| {
        let attribute = node.attribute.iter().find(|attribute| attribute.name == name)?;
        usize::try_from(attribute.i?).ok()
    };
    let (codes, scales, zero_points) = match &node.input[..] {
        [_, codes, scales] => (codes, scales, None),
        [_, codes, scales, zero_points] => (codes, scales, Some(zero_points)),
        _ => return None,
    };
    if node.op_type != "MatMulNBits" || number("accuracy_level") != Some(4) {
        return None;
    }
    let bits = WeightBits::of(number("bits")?)?;
    let (columns, depth, block) = (number("N")?, number("K")?, number("block_size")?);
    data.read_codes(initializers.get(&**codes)?, &mut room.codes)?;
    data.read_floats(initializers.get(&**scales)?, room)?;
    match zero_points {
        Some(zero_points) => data.read_codes(initializers.get(&**zero_points)?, &mut room.zero_points)?,
        None => room.zero_points.clear(),
    }
    let Scratch { codes, scales, zero_points, packed, .. } = room;
    let source = QuantizedBlocks { bits, columns, depth, block, codes, scales, zero_points };
    let operator = match bits {
        WeightBits::Four => MATMUL_INT4,
        WeightBits::Eight => MATMUL_INT8,
    };
    Some((PackedWeights::new(source, packed)?, operator))
}

/// Buffers that are reused from one tensor to the next, because new memory costs more than the read itself: what is read,
/// and the packed matrices.
#[derive(Default)]
struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    halfs: Vec<u16>,
    zero_points: Vec<u8>,
    packed: PackedStorage,
}

/// Replaces the attention nodes that can be. Returns the format of the key-value cache then: `format`, or float32 if some
/// nodes were not replaced; `None` if none were.
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
        node.input.truncate(11);
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

/// The last dimension (`head_dim`) of a float tensor of rank 4 with a known last dimension, which may be a key-value cache.
fn cached_floats(value: &ValueInfo) -> Option<u64> {
    let declared = value.r#type.as_ref()?.tensor_type.as_ref()?;
    let dimensions = &declared.shape.as_ref()?.dim;
    match dimensions.last()?.value {
        Some(Extent::Known(head_dim)) if is_float(declared.elem_type) && dimensions.len() == 4 => {
            u64::try_from(head_dim).ok()
        }
        _ => None,
    }
}

/// Whether a type is one of those that eka's operators compute, if need be by way of float32.
fn is_float(element: i32) -> bool {
    [ElementType::Float, ElementType::Float16].iter().any(|float| element == i32::from(*float))
}

fn last_dimension(declared: &mut TensorType) -> Option<&mut Dimension> {
    declared.shape.as_mut()?.dim.last_mut()
}

/// Whether eka's attention computes what this `GroupQueryAttention` does: no position ids, no sinks, no quantized cache, and no
/// unknown attribute.
///
/// Inputs: 0 query (or packed QKV), 1 key, 2 value, 3 past_key, 4 past_value, 5 seqlens_k, 6 total_sequence_length, 7 cos_cache,
/// 8 sin_cache, 10 attention_bias; others are not supported. Outputs: attention, present_key, present_value.
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
        && (9..node.input.len()).all(|i| i == 10 || !is_given(i))
        && is_rotary == is_given(7)
        && is_rotary == is_given(8)
        && node.output.len() == 3
        && node.attribute.iter().all(is_known)
}

/// Adds casts around eka's operators in a float16 graph: they take and give float32, and caches and weights are as they say.
fn cast(graph: &mut Graph) {
    let types = float16_values(graph);
    if types.is_empty() {
        return;
    }
    let mut nodes = Vec::with_capacity(graph.node.len() * 2);
    for mut node in std::mem::take(&mut graph.node) {
        if node.domain != DOMAIN {
            nodes.push(node);
            continue;
        }
        let is_product = node.op_type != ATTENTION;
        let outputs = node.output.clone();
        for (i, input) in node.input.iter_mut().enumerate() {
            let is_number = if is_product { i == 0 } else { !matches!(i, 3..=6) };
            if is_number && !input.is_empty() && types.contains(&**input) {
                let single = format!("{}.{i}.float32", outputs[0]);
                nodes.push(cast_node(input, &single, ElementType::Float));
                *input = single;
            }
        }
        let single = format!("{}.float32", outputs[0]);
        node.output[0].clone_from(&single);
        nodes.push(node);
        nodes.push(cast_node(&single, &outputs[0], ElementType::Float16));
    }
    graph.node = nodes;
}

fn cast_node(input: &str, output: &str, to: ElementType) -> Node {
    let r#type = AttributeType::Int.into();
    Node {
        input: vec![input.into()],
        output: vec![output.into()],
        op_type: "Cast".into(),
        attribute: vec![Attribute { name: "to".into(), f: None, i: Some(to as i64), r#type }],
        ..Node::default()
    }
}

/// The values of a graph that computes in float16: all but the outputs of casts to other types. Empty for one that does not.
fn float16_values(graph: &Graph) -> BTreeSet<String> {
    let half = i32::from(ElementType::Float16);
    if !graph.initializer.iter().any(|tensor| tensor.data_type == half) {
        return BTreeSet::new();
    }
    let is_cast =
        |node: &&Node| node.op_type == "Cast" && node.attribute.iter().all(|to| to.i != Some(half.into()));
    let casts: BTreeSet<&String> = graph.node.iter().filter(is_cast).flat_map(|node| &node.output).collect();
    let halfs = graph.initializer.iter().filter(|tensor| tensor.data_type == half).map(|tensor| &tensor.name);
    let values = graph.node.iter().flat_map(|node| &node.output).filter(|output| !casts.contains(output));
    values.chain(halfs).cloned().collect()
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
    /// Reads codes into `room`.
    fn read_codes(&mut self, tensor: &Tensor, room: &mut Vec<u8>) -> Option<()> {
        if tensor.data_type != i32::from(ElementType::Uint8) {
            return None;
        }
        self.read(tensor, room)
    }

    /// Reads float32 or float16 into the scales of `room`.
    fn read_floats(&mut self, tensor: &Tensor, room: &mut Scratch) -> Option<()> {
        // Files are little-endian.
        match ElementType::try_from(tensor.data_type) {
            Ok(ElementType::Float) => {
                self.read(tensor, &mut room.scales)?;
                room.scales.iter_mut().for_each(|one| *one = f32::from_bits(u32::from_le(one.to_bits())));
            }
            Ok(ElementType::Float16) => {
                self.read(tensor, &mut room.halfs)?;
                room.scales.clear();
                room.scales
                    .extend(room.halfs.iter().map(|half| f16::from_bits(u16::from_le(*half)).to_f32()));
            }
            _ => return None,
        }
        Some(())
    }

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

/// Fills `bytes` from offset `start` of the file, in parallel.
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
