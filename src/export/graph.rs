//! Builds an ONNX graph node by node.

use prost::Message;

use super::data_layout::DataRange;
use crate::onnx::{
    Attribute, AttributeType, DataLocation, Dimension, ElementType, Extent, Function, Graph, IR_VERSION,
    Model, Node, OperatorSet, Shape, StringEntry, Tensor, TensorType, Type, ValueInfo,
};

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Version of the operator set of ONNX.
const OPSET: i64 = 21;

/// One dimension of a tensor's shape.
#[derive(Clone, Copy)]
pub(super) enum Dim<'a> {
    Known(usize),
    Named(&'a str),
}

/// A node to be added.
pub(super) struct Op<'a> {
    name: &'a str,
    domain: &'static str,
    inputs: &'a [&'a str],
    outputs: &'a [&'a str],
    attributes: Vec<Attribute>,
}

impl<'a> Op<'a> {
    /// An operator of ONNX itself.
    pub(super) fn plain(name: &'a str, inputs: &'a [&'a str], outputs: &'a [&'a str]) -> Self {
        Self { name, domain: "", inputs, outputs, attributes: Vec::new() }
    }

    /// An operator of ONNX Runtime's own.
    pub(super) fn microsoft(name: &'a str, inputs: &'a [&'a str], outputs: &'a [&'a str]) -> Self {
        Self { domain: MICROSOFT, ..Self::plain(name, inputs, outputs) }
    }

    /// An operator of a function that the graph defines.
    pub(super) fn of(
        domain: &'static str,
        name: &'a str,
        inputs: &'a [&'a str],
        outputs: &'a [&'a str],
    ) -> Self {
        Self { domain, ..Self::plain(name, inputs, outputs) }
    }

    pub(super) fn with(self, attributes: Vec<Attribute>) -> Self {
        Self { attributes, ..self }
    }
}

impl Op<'_> {
    /// The node, named after its first output.
    pub(super) fn node(self) -> Node {
        let strings = |names: &[&str]| names.iter().copied().map(Into::into).collect();
        Node {
            name: self.outputs.first().copied().unwrap_or_default().into(),
            op_type: self.name.into(),
            domain: self.domain.into(),
            input: strings(self.inputs),
            output: strings(self.outputs),
            attribute: self.attributes,
        }
    }
}

/// A graph that grows.
pub(super) struct Builder {
    graph: Graph,
    functions: Vec<Function>,
    data_file: &'static str,
}

impl Builder {
    /// An empty graph whose initializers lie in `data_file`.
    pub(super) fn new(name: &str, data_file: &'static str) -> Self {
        Self { graph: Graph { name: name.into(), ..Graph::default() }, functions: Vec::new(), data_file }
    }

    pub(super) fn input(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        self.graph.input.push(value_info(name, element, dims));
    }

    pub(super) fn output(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        self.graph.output.push(value_info(name, element, dims));
    }

    /// A constant of the shape `dims` over the bytes of `region`.
    pub(super) fn initializer(
        &mut self,
        name: &str,
        element: ElementType,
        dims: &[usize],
        region: DataRange,
    ) {
        let entry = |key: &str, value: String| StringEntry { key: key.into(), value };
        self.graph.initializer.push(Tensor {
            dims: dims.iter().copied().map(int).collect(),
            data_type: element.into(),
            name: name.into(),
            external_data: vec![
                entry("location", self.data_file.into()),
                entry("offset", region.offset.to_string()),
                entry("length", region.bytes.to_string()),
            ],
            data_location: DataLocation::External.into(),
            raw_data: Vec::new(),
        });
    }

    /// A small constant of the shape `dims`, little-endian, within the graph's own file.
    pub(super) fn constant(&mut self, name: &str, element: ElementType, dims: &[usize], bytes: &[u8]) {
        if self.graph.initializer.iter().any(|tensor| tensor.name == name) {
            return;
        }
        self.graph.initializer.push(Tensor {
            dims: dims.iter().copied().map(int).collect(),
            data_type: element.into(),
            name: name.into(),
            external_data: Vec::new(),
            data_location: DataLocation::Default.into(),
            raw_data: bytes.to_vec(),
        });
    }

    /// Adds a node named after its first output.
    pub(super) fn add(&mut self, op: Op) {
        self.graph.node.push(op.node());
    }

    /// Gives the first output of the node that was added last another name.
    pub(super) fn rename_last_output(&mut self, name: &str) {
        if let Some(output) = self.graph.node.last_mut().and_then(|node| node.output.first_mut()) {
            *output = name.into();
        }
    }

    /// The graph as the content of a `.onnx` file.
    pub(super) fn encode(self) -> Vec<u8> {
        Model {
            ir_version: IR_VERSION,
            producer_name: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            opset_import: opsets(self.functions.first().map(|function| &*function.domain)),
            functions: self.functions,
        }
        .encode_to_vec()
    }

    /// Defines an operator by `function`, unless there is one of its name already.
    pub(super) fn define(&mut self, function: Function) {
        if self.functions.iter().all(|known| known.name != function.name) {
            self.functions.push(function);
        }
    }
}

/// The operator sets that nodes are from, and `domain`.
pub(super) fn opsets(domain: Option<&str>) -> Vec<OperatorSet> {
    let opset = |domain: &str, version| OperatorSet { domain: domain.into(), version };
    let own = domain.map(|domain| opset(domain, 1));
    [opset("", OPSET), opset(MICROSOFT, 1)].into_iter().chain(own).collect()
}

/// An attribute that holds a whole number.
pub(super) fn int_attribute(name: &str, value: usize) -> Attribute {
    Attribute {
        name: name.into(),
        i: Some(int(value)),
        r#type: AttributeType::Int.into(),
        ..Attribute::default()
    }
}

/// An attribute that holds a number.
pub(super) fn float_attribute(name: &str, value: f32) -> Attribute {
    Attribute {
        name: name.into(),
        f: Some(value),
        r#type: AttributeType::Float.into(),
        ..Attribute::default()
    }
}

/// An attribute that holds whole numbers.
pub(super) fn ints_attribute(name: &str, ints: Vec<i64>) -> Attribute {
    Attribute { name: name.into(), ints, r#type: AttributeType::Ints.into(), ..Attribute::default() }
}

/// An attribute that holds a graph: the body of a loop, or a branch.
pub(super) fn graph_attribute(name: &str, graph: Graph) -> Attribute {
    Attribute {
        name: name.into(),
        g: Some(graph),
        r#type: AttributeType::Graph.into(),
        ..Attribute::default()
    }
}

/// The declaration of an input or output.
pub(super) fn value_info(name: &str, element: ElementType, dims: &[Dim]) -> ValueInfo {
    let dimension = |dim: &Dim| Dimension {
        value: Some(match *dim {
            Dim::Known(n) => Extent::Known(int(n)),
            Dim::Named(name) => Extent::Named(name.into()),
        }),
    };
    let shape = Shape { dim: dims.iter().map(dimension).collect() };
    let tensor_type = TensorType { elem_type: element.into(), shape: Some(shape) };
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type: Some(tensor_type) }) }
}

#[expect(clippy::cast_possible_wrap, reason = "sizes of a blueprint are far below 2^63")]
fn int(n: usize) -> i64 {
    n as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_of_zero_is_written() {
        let bytes = int_attribute("axis", 0).encode_to_vec();
        assert_eq!(bytes, b"\x0a\x04axis\x18\x00\xa0\x01\x02");
    }

    #[test]
    fn a_scalar_has_a_shape_without_dimensions() {
        let bytes = value_info("n", ElementType::Int32, &[]).encode_to_vec();
        assert_eq!(bytes, b"\x0a\x01n\x12\x06\x0a\x04\x08\x06\x12\x00");
    }
}
