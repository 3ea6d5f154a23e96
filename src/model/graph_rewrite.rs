//! Replaces nodes of a graph by eka's operators.
//!
//! The graph is changed in memory when it is loaded. A `MatMulNBits` node with int4 or int8 weights and `accuracy_level` 4 becomes
//! an [`eka:MatMulInt4` or `eka:MatMulInt8`](crate::device::operators); its weights are read from the data file and packed in the
//! operator's layout, so ONNX Runtime never maps them. A `FusedMatMul` node with float weights becomes an `eka:MatMulFloat32` or
//! `eka:MatMulFloat16`, over weights as they are in the file. A `GroupQueryAttention` node becomes an `eka:Attention`. If every
//! attention node is replaced, the key-value cache may have a smaller element type, and the cache's inputs and outputs get that
//! type. A node of the function for experts becomes an `eka:MoE`, `eka:MoEFloat32` or `eka:MoEFloat16`. Other nodes do not change. A
//! graph that does not encode back to the same bytes, such as one from another exporter, is not changed at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message;

use super::{
    external_data::Initializers,
    float16_casts,
    graph_file::GraphFile,
    hidden_states::{self, HiddenStates},
    moe_nodes::Experts,
    packed_cache,
    packed_matrices::MatrixSource,
    scaled_casts::{self, ScaledCasts},
};
use crate::{
    device::{
        SessionOptions,
        operators::{
            ATTENTION, DOMAIN, Format, MATMUL_FLOAT16, MATMUL_FLOAT32, MATMUL_INT4, MATMUL_INT8, MATRIX, MOE,
            Operators, PRODUCT, WeightBits,
        },
    },
    device_spec::{CacheChoice, PackedFileChoice},
    onnx::{Attribute, AttributeType, ElementType, Extent, Graph, Model, Node, OperatorSet, ValueInfo, gqa},
};

/// A graph with eka's operators.
pub(super) struct RewrittenGraph {
    /// Replaces the content of `model.onnx`.
    pub(super) content: Vec<u8>,
    pub(super) operators: Operators,
    /// Whether every node gives a row the same bits whatever other rows it is computed with.
    pub(super) is_row_invariant: bool,
    /// The output with the hidden states that the head reads, if there is one.
    pub(super) hidden: Option<HiddenStates>,
    /// Whether a pass may be over [several sequences](crate::device::operators::PassSequence), each with the bits that it has
    /// in passes by itself.
    pub(super) takes_sequences: bool,
}

/// Operators of ONNX Runtime that compute each row, or each number, by itself.
const ROW_BY_ROW: [&str; 24] = [
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
    "Sigmoid",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Sub",
    "Tanh",
    "Unsqueeze",
];

/// The graph in `file` with eka's operators wherever they compute the same. `None` if no node can be replaced or the graph cannot
/// be decoded; ONNX Runtime then loads the file and reports the better error.
///
/// The type of the key-value cache in `options` applies only if every attention node is replaced. `head` is the name of the logits
/// and the width of the hidden states.
pub(super) fn rewrite(
    file: &GraphFile,
    options: &SessionOptions,
    head: (&str, usize),
) -> Option<RewrittenGraph> {
    let mut model = decode_if_lossless(file)?;
    let graph = model.graph.as_mut()?;
    let format = cache_format_for(graph, options.cache);
    let mut operators = replace_matmuls(graph, file, options.packed_file)?;
    if let Some(format) = replace_attention(graph, format) {
        operators.set_cache_format(format);
    }
    if operators.is_empty() {
        return None;
    }
    drop_unused(graph);
    float16_casts::add(graph);
    model.functions.retain(|function| graph.node.iter().any(|node| node.domain == function.domain));
    let hidden = hidden_states::expose(graph, head, is_product);
    let is_row_invariant =
        graph.node.iter().all(|node| node.domain == DOMAIN || ROW_BY_ROW.contains(&&*node.op_type));
    let takes_sequences = is_row_invariant && allow_sequences(graph);
    model.opset_import.push(OperatorSet { domain: DOMAIN.into(), version: 1 });
    Some(RewrittenGraph {
        content: model.encode_to_vec(),
        operators,
        is_row_invariant,
        hidden,
        takes_sequences,
    })
}

/// Whether `node` is a product of eka's with one matrix.
fn is_product(node: &Node) -> bool {
    node.domain == DOMAIN && !node.op_type.starts_with(MOE) && node.op_type != ATTENTION
}

/// The format of the key-value cache with eka's operators; `None` if no attention node of the graph in `file` can be replaced.
pub(super) fn cache_format(file: &GraphFile, cache: CacheChoice) -> Option<Format> {
    let mut graph = decode_if_lossless(file)?.graph?;
    let format = cache_format_for(&graph, cache);
    replace_attention(&mut graph, format)
}

/// The graph in `file`, if it encodes back to the same bytes.
fn decode_if_lossless(file: &GraphFile) -> Option<Model> {
    let model = file.decode()?;
    (model.encode_to_vec() == file.content()?).then_some(model)
}

/// The format of the key-value cache that `cache` stands for in this graph.
fn cache_format_for(graph: &Graph, cache: CacheChoice) -> Format {
    let is_quantized = graph.node.iter().any(|node| node.op_type == "MatMulNBits");
    let is_half = float16_casts::computes_in_float16(graph);
    match cache {
        CacheChoice::Float32 => Format::Float32,
        CacheChoice::Auto if !is_quantized && !is_half => Format::Float32,
        CacheChoice::Auto | CacheChoice::Float16 => Format::Float16,
        CacheChoice::Int8 => Format::Int8,
    }
}

/// What a product or sparse MLP is replaced by.
enum Replacement {
    Matrix(MatrixSource),
    Experts(Box<Experts>),
    /// The operator for float weights, and their columns and depth.
    Float((&'static str, [usize; 2])),
}

impl Replacement {
    fn of(node: &Node, initializers: &Initializers, casts: &ScaledCasts) -> Option<Self> {
        let matrix = || MatrixSource::of(node, initializers, casts).map(Self::Matrix);
        let experts = || Experts::of(node, initializers).map(Box::new).map(Self::Experts);
        matrix().or_else(experts).or_else(|| float_operator(node, initializers).map(Self::Float))
    }

    /// The matrices to pack.
    fn sources(&self) -> Vec<&MatrixSource> {
        match self {
            Self::Matrix(source) => vec![source],
            Self::Experts(experts) => experts.sources().collect(),
            Self::Float(_) => Vec::new(),
        }
    }
}

/// Replaces the matrix products and sparse MLPs that eka's operators support, and packs quantized weights.
fn replace_matmuls(graph: &mut Graph, file: &GraphFile, packed_file: PackedFileChoice) -> Option<Operators> {
    let initializers: Initializers = graph.initializer.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let casts = scaled_casts::find(&graph.node, &initializers);
    let replacements: Vec<_> =
        graph.node.iter().map(|node| Replacement::of(node, &initializers, &casts)).collect();
    // In the order of the graph, which is the order in which they are read.
    let mut seen = BTreeSet::new();
    let sources = replacements.iter().flatten().flat_map(Replacement::sources);
    let distinct = sources.filter(|source| seen.insert(*source)).cloned().collect();
    let (dir, name) = (file.path().parent()?, file.path().file_name()?.to_str()?);
    let matrices = packed_cache::load(dir, name, distinct, packed_file);
    let mut operators = Operators::default();
    let mut numbers = BTreeMap::new();
    for (node, replacement) in graph.node.iter_mut().zip(replacements) {
        match replacement {
            None => {}
            Some(Replacement::Experts(experts)) => experts.replace(node, &matrices, &mut operators),
            Some(Replacement::Float((operator, shape))) => {
                operators.add_float_products();
                (node.domain, node.op_type) = (DOMAIN.into(), operator.into());
                let product = operators.name_product(node.name.clone(), shape);
                node.attribute = vec![number_attribute(PRODUCT, product)];
            }
            Some(Replacement::Matrix(source)) => {
                let Some(matrix) = matrices.get(&source) else { continue };
                let operator = match matrix.shape().bits {
                    WeightBits::Four => MATMUL_INT4,
                    WeightBits::Eight => MATMUL_INT8,
                };
                let number = *numbers.entry(source).or_insert_with(|| operators.add(Arc::clone(matrix)));
                node.input.truncate(1);
                (node.domain, node.op_type) = (DOMAIN.into(), operator.into());
                let shape = [matrix.columns(), matrix.depth()];
                let product = operators.name_product(node.name.clone(), shape);
                node.attribute = vec![number_attribute(MATRIX, number), number_attribute(PRODUCT, product)];
            }
        }
    }
    Some(operators)
}

fn number_attribute(name: &str, number: usize) -> Attribute {
    let r#type = AttributeType::Int.into();
    Attribute { name: name.into(), i: i64::try_from(number).ok(), r#type, ..Attribute::default() }
}

/// The operator that computes what `node` does, if that is a product with a matrix of float weights, and the matrix's columns and
/// depth.
fn float_operator(node: &Node, initializers: &Initializers) -> Option<(&'static str, [usize; 2])> {
    let [_, weights] = &node.input[..] else { return None };
    let [attribute] = &node.attribute[..] else { return None };
    let weights = initializers.get(&**weights)?;
    let is_transposed = attribute.name == "transB" && attribute.i == Some(1);
    let [columns, depth] = weights.dims[..] else { return None };
    if node.op_type != "FusedMatMul" || !is_transposed {
        return None;
    }
    let shape = [usize::try_from(columns).ok()?, usize::try_from(depth).ok()?];
    match ElementType::try_from(weights.data_type) {
        Ok(ElementType::Float) => Some((MATMUL_FLOAT32, shape)),
        Ok(ElementType::Float16) => Some((MATMUL_FLOAT16, shape)),
        _ => None,
    }
}

/// Replaces the attention nodes that eka's operator supports. Returns the resulting format of the key-value cache: `format` if every
/// node was replaced, float32 if only some were, `None` if none were.
fn replace_attention(graph: &mut Graph, format: Format) -> Option<Format> {
    let mut head_dims = cache_head_dims(graph);
    let (mut replaced_caches, mut all_replaced) = (BTreeSet::new(), true);
    for node in graph.node.iter_mut().filter(|node| node.op_type == gqa::NAME) {
        let past = node.input.get(gqa::PAST_KEY_VALUE).unwrap_or_default();
        let present = node.output.get(gqa::PRESENT_KEY_VALUE).unwrap_or_default();
        let caches = [past, present].concat();
        if !is_supported(node) || !caches.iter().all(|name| head_dims.contains_key(name)) {
            all_replaced = false;
            continue;
        }
        (node.domain, node.op_type) = (DOMAIN.into(), ATTENTION.into());
        node.input.truncate(gqa::HEAD_SINK + 1);
        replaced_caches.extend(caches);
    }
    if replaced_caches.is_empty() {
        return None;
    }
    let format = if all_replaced { format } else { Format::Float32 };
    head_dims.retain(|name, _| replaced_caches.contains(name));
    retype_cache(graph, &head_dims, format);
    Some(format)
}

/// Lets the input with the length have any number of values, if only attention reads it and the total length. Learned positions
/// and ALiBi read them too, and compute the positions of one sequence.
fn allow_sequences(graph: &mut Graph) -> bool {
    let is_attention = |node: &Node| node.domain == DOMAIN && node.op_type == ATTENTION;
    let lengths: BTreeSet<String> = graph
        .node
        .iter()
        .filter(|node| is_attention(node))
        .flat_map(|node| [&node.input[gqa::SEQLENS_K], &node.input[gqa::TOTAL_SEQUENCE_LENGTH]])
        .cloned()
        .collect();
    let is_read = |node: &Node| node.input.iter().any(|name| lengths.contains(name));
    if graph.node.iter().any(|node| !is_attention(node) && is_read(node)) {
        return false;
    }
    let last = graph.node.iter().find(|node| is_attention(node)).map(|node| &node.input[gqa::SEQLENS_K]);
    let declared = graph.input.iter_mut().find(|input| Some(&input.name) == last);
    let tensor = declared.and_then(|input| input.r#type.as_mut()?.tensor_type.as_mut());
    let dimensions = tensor.and_then(|tensor| tensor.shape.as_mut()).map(|shape| &mut shape.dim[..]);
    let Some([dimension]) = dimensions else { return false };
    dimension.value = Some(Extent::Named("sequences".into()));
    true
}

/// The inputs and outputs of the graph that may be a float key-value cache, with their last dimension (`head_dim`).
fn cache_head_dims(graph: &Graph) -> BTreeMap<String, usize> {
    let values = graph.input.iter().chain(&graph.output);
    values.filter_map(|value| Some((value.name.clone(), float_head_dim(value)?))).collect()
}

/// Declares the inputs and outputs in `head_dims` as a key-value cache of `format`.
fn retype_cache(graph: &mut Graph, head_dims: &BTreeMap<String, usize>, format: Format) {
    let element = match format {
        Format::Float32 => ElementType::Float,
        Format::Float16 => ElementType::Float16,
        Format::Int8 => ElementType::Int8,
    };
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        let Some(head_dim) = head_dims.get(&value.name) else { continue };
        let tensor = value.r#type.as_mut().and_then(|declared| declared.tensor_type.as_mut());
        let Some(tensor) = tensor else { continue };
        tensor.elem_type = element.into();
        if let Some(row) = tensor.shape.as_mut().and_then(|shape| shape.dim.last_mut()) {
            row.value = Some(Extent::Known(i64::try_from(format.elements(*head_dim)).unwrap_or(i64::MAX)));
        }
    }
}

/// The last dimension of a float32 or float16 tensor of rank 4, if it is known.
fn float_head_dim(value: &ValueInfo) -> Option<usize> {
    let declared = value.r#type.as_ref()?.tensor_type.as_ref()?;
    let dimensions = &declared.shape.as_ref()?.dim;
    let is_float = [ElementType::Float, ElementType::Float16]
        .iter()
        .any(|float| declared.elem_type == i32::from(*float));
    match dimensions.last()?.value {
        Some(Extent::Known(head_dim)) if is_float && dimensions.len() == 4 => head_dim.try_into().ok(),
        _ => None,
    }
}

/// Whether eka's attention computes what this `GroupQueryAttention` does: no position ids, no quantized cache, and no
/// unknown attribute.
fn is_supported(node: &Node) -> bool {
    let is_given = |i: usize| node.input.get(i).is_some_and(|name| !name.is_empty());
    let number = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name)?.i;
    let is_known = |attribute: &Attribute| match &*attribute.name {
        "num_heads" | "kv_num_heads" | "do_rotary" | "local_window_size" => attribute.i.is_some(),
        "scale" | "softcap" => attribute.f.is_some(),
        "rotary_interleaved" => attribute.i == Some(0),
        _ => false,
    };
    let required = [gqa::QUERY, gqa::SEQLENS_K, gqa::TOTAL_SEQUENCE_LENGTH];
    let is_rotary = number("do_rotary") == Some(1);
    required.into_iter().chain(gqa::PAST_KEY_VALUE).all(is_given)
        // Both or none: without them, the query is packed QKV.
        && is_given(gqa::KEY) == is_given(gqa::VALUE)
        && gqa::COS_SIN_CACHE.into_iter().all(|i| is_given(i) == is_rotary)
        && (gqa::INPUTS..node.input.len()).all(|i| [gqa::ATTENTION_BIAS, gqa::HEAD_SINK].contains(&i) || !is_given(i))
        && node.output.len() == gqa::OUTPUTS
        && node.attribute.iter().all(is_known)
}

/// Drops nodes and initializers that nothing reads any more.
fn drop_unused(graph: &mut Graph) {
    let outputs: BTreeSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    loop {
        let read: BTreeSet<String> = graph.node.iter().flat_map(|node| node.input.clone()).collect();
        let before = graph.node.len();
        graph.node.retain(|node| {
            node.output.iter().any(|output| read.contains(output) || outputs.contains(output))
        });
        if graph.node.len() == before {
            graph.initializer.retain(|tensor| read.contains(&tensor.name));
            return;
        }
    }
}
