//! Checks a graph against its manifest.

use std::{collections::BTreeSet, ops::Range};

use super::{GraphError, graph_file::GraphFile};
use crate::{
    device::{Port, operators::Format},
    manifest::{Dtype, Lengths, Manifest},
    onnx::{Dimension, ElementType, Extent, Graph, ValueInfo, gqa},
};

/// Checks the inputs and outputs that a graph file declares, and its position tables, against the manifest, without ONNX Runtime.
/// A graph that eka cannot decode passes: ONNX Runtime reports it.
pub(super) fn check_declarations(manifest: &Manifest, file: &GraphFile) -> Result<(), GraphError> {
    let Some(graph) = file.decode().and_then(|model| model.graph) else { return Ok(()) };
    let is_initialized = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs: Vec<Port> =
        graph.input.iter().filter(|input| !is_initialized(&input.name)).map(port).collect();
    let outputs: Vec<Port> = graph.output.iter().map(port).collect();
    // Undeclared shapes are inferred by ONNX Runtime and checked after loading.
    if graph.input.iter().chain(&graph.output).all(|value| shape(value).is_some()) {
        let mut manifest = manifest.clone();
        adopt_dtype(&mut manifest, &inputs);
        check_ports(&manifest, None, &inputs, &outputs)?;
    }
    check_table_lengths(manifest, &graph)
}

/// Checks the position tables of a graph file against the manifest. A graph that eka cannot decode passes.
pub(super) fn check_position_tables(manifest: &Manifest, file: &GraphFile) -> Result<(), GraphError> {
    let Some(graph) = file.decode().and_then(|model| model.graph) else { return Ok(()) };
    check_table_lengths(manifest, &graph)
}

/// Checks that the position tables cover the manifest's context length: reading beyond their end would fail in the middle of an
/// answer.
fn check_table_lengths(manifest: &Manifest, graph: &Graph) -> Result<(), GraphError> {
    let shortest = position_tables(graph).min_by_key(|(_, rows)| *rows);
    match shortest {
        Some((table, rows)) if rows < dimension(manifest.context_length) => Err(GraphError::Positions {
            table: table.to_owned(),
            rows,
            context_length: manifest.context_length,
        }),
        _ => Ok(()),
    }
}

/// The tables with a row for each position, and their rows: cosines and sines of rotary positions, and learned positions.
fn position_tables(graph: &Graph) -> impl Iterator<Item = (&str, i64)> {
    let rotary = graph.node.iter().filter_map(|node| match &*node.op_type {
        gqa::NAME => node.input.get(gqa::COS_SIN_CACHE),
        "RotaryEmbedding" => node.input.get(ROTARY_COS_SIN_CACHE),
        _ => None,
    });
    let names: BTreeSet<&str> = rotary.flatten().map(String::as_str).chain([LEARNED_POSITIONS]).collect();
    let tables = graph.initializer.iter().filter(move |tensor| names.contains(&*tensor.name));
    tables.filter_map(|tensor| Some((&*tensor.name, *tensor.dims.first()?)))
}

/// An input or output as a graph declares it.
fn port(value: &ValueInfo) -> Port {
    let declared = value.r#type.as_ref().and_then(|declared| declared.tensor_type.as_ref());
    let element = match declared.and_then(|tensor| ElementType::try_from(tensor.elem_type).ok()) {
        Some(ElementType::Float) => "float32",
        Some(ElementType::Float16) => "float16",
        Some(ElementType::Bfloat16) => "bfloat16",
        Some(ElementType::Int8) => "int8",
        Some(ElementType::Int32) => "int32",
        Some(ElementType::Int64) => "int64",
        Some(ElementType::Uint8 | ElementType::Bool | ElementType::Undefined) | None => "not supported",
    };
    Port { name: value.name.clone(), element: element.into(), shape: shape(value).unwrap_or_default() }
}

/// The shape of an input or output, if it is declared; −1 where a dimension is open.
fn shape(value: &ValueInfo) -> Option<Vec<i64>> {
    let size = |dimension: &Dimension| match dimension.value {
        Some(Extent::Known(size)) => size,
        Some(Extent::Named(_)) | None => -1,
    };
    let declared = value.r#type.as_ref()?.tensor_type.as_ref()?;
    Some(declared.shape.as_ref()?.dim.iter().map(size).collect())
}

/// `cos_cache` and `sin_cache` among the inputs of `RotaryEmbedding`.
const ROTARY_COS_SIN_CACHE: Range<usize> = 2..4;

/// The initializer with learned position embeddings in eka's exports.
const LEARNED_POSITIONS: &str = "positions.weight";

/// An input or output that the graph must have; −1 matches any size.
struct Expected {
    name: String,
    element: &'static str,
    shape: Vec<i64>,
}

/// Sets the manifest's `dtype` from the graph's cache inputs if the manifest was made from a `genai_config.json`, which does not
/// record it.
pub(super) fn adopt_dtype(manifest: &mut Manifest, inputs: &[Port]) {
    let Lengths::Mask { .. } = manifest.graph.lengths else { return };
    let name = of_layer(&manifest.graph.past_key, 0);
    match inputs.iter().find(|port| port.name == name).map(|port| port.element.as_str()) {
        Some("float16") => manifest.dtype = Dtype::Float16,
        Some("bfloat16") => manifest.dtype = Dtype::Bfloat16,
        _ => {}
    }
}

/// Checks that the graph has exactly the inputs of the manifest and at least its outputs, with matching types and shapes.
///
/// `format` is the format of the key-value cache with eka's attention. With `None`, the cache has the manifest's `dtype`.
pub(super) fn check_ports(
    manifest: &Manifest,
    format: Option<Format>,
    inputs: &[Port],
    outputs: &[Port],
) -> Result<(), GraphError> {
    let expected = expected_inputs(manifest, format);
    for port in inputs {
        if !expected.iter().any(|e| e.name == port.name) {
            return Err(GraphError::Unknown { name: port.name.clone() });
        }
    }
    expected.iter().try_for_each(|e| check_port("input", e, inputs))?;
    expected_outputs(manifest, format).iter().try_for_each(|e| check_port("output", e, outputs))
}

fn check_port(side: &'static str, expected: &Expected, ports: &[Port]) -> Result<(), GraphError> {
    let Some(port) = ports.iter().find(|p| p.name == expected.name) else {
        return Err(GraphError::Missing { side, name: expected.name.clone() });
    };
    let fits = |(found, expected): (&i64, &i64)| found == expected || *found == -1 || *expected == -1;
    let same_rank = port.shape.len() == expected.shape.len();
    if port.element == expected.element && same_rank && port.shape.iter().zip(&expected.shape).all(fits) {
        return Ok(());
    }
    Err(GraphError::Type {
        name: port.name.clone(),
        found: port.element.clone(),
        found_shape: port.shape.clone(),
        expected: expected.element,
        expected_shape: expected.shape.clone(),
    })
}

fn expected_inputs(manifest: &Manifest, format: Option<Format>) -> Vec<Expected> {
    let names = &manifest.graph;
    let tensor =
        |name: &str, element, shape: &[i64]| Expected { name: name.into(), element, shape: shape.into() };
    let mut all = vec![tensor(&names.input_ids, "int64", &[1, -1])];
    match &names.lengths {
        Lengths::Separate { seqlens_k, total_sequence_length, logits_index } => all.extend([
            tensor(seqlens_k, "int32", &[1]),
            tensor(total_sequence_length, "int32", &[]),
            tensor(logits_index, "int64", &[-1]),
        ]),
        Lengths::Mask { attention_mask } => all.push(tensor(attention_mask, "int64", &[1, -1])),
    }
    all.extend(cache_ports(manifest, format, [&names.past_key, &names.past_value]));
    all
}

fn expected_outputs(manifest: &Manifest, format: Option<Format>) -> Vec<Expected> {
    let names = &manifest.graph;
    let logits = Expected {
        name: names.logits.clone(),
        element: "float32",
        shape: vec![1, -1, dimension(manifest.dims.vocab)],
    };
    let mut all = vec![logits];
    all.extend(cache_ports(manifest, format, [&names.present_key, &names.present_value]));
    all
}

fn cache_ports<'a>(
    manifest: &'a Manifest,
    format: Option<Format>,
    names: [&'a str; 2],
) -> impl Iterator<Item = Expected> + use<'a> {
    let head_dim = manifest.dims.head_dim;
    let row = format.map_or(head_dim, |format| format.elements(head_dim));
    let shape = vec![1, dimension(manifest.dims.kv_heads), -1, dimension(row)];
    let element = match (format, manifest.dtype) {
        (Some(Format::Int8), _) => "int8",
        (Some(Format::Float16), _) | (None, Dtype::Float16) => "float16",
        (Some(Format::Float32), _) | (None, Dtype::Float32) => "float32",
        (None, Dtype::Bfloat16) => "bfloat16",
    };
    (0..manifest.dims.layers).flat_map(move |layer| {
        let shape = shape.clone();
        names.map(|name| Expected { name: of_layer(name, layer), element, shape: shape.clone() })
    })
}

/// The name of a layer's tensor: `{i}` is the layer's number.
pub(super) fn of_layer(name: &str, layer: usize) -> String {
    name.replace("{i}", &layer.to_string())
}

fn dimension(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
