//! Casts in float16 graphs: eka's operators take and give float32.

use std::{collections::BTreeSet, mem};

use crate::{
    device::operators::{ATTENTION, DOMAIN, MOE, MOE_NUMBERS},
    onnx::{Attribute, AttributeType, ElementType, Graph, Node, gqa},
};

/// Adds casts around eka's operators in a float16 graph. Caches and weights stay as they are.
pub(super) fn add(graph: &mut Graph) {
    let types = float16_values(graph);
    if types.is_empty() {
        return;
    }
    let mut nodes = Vec::with_capacity(graph.node.len() * 2);
    for mut node in mem::take(&mut graph.node) {
        if node.domain != DOMAIN {
            nodes.push(node);
            continue;
        }
        let is_mixture = node.op_type.starts_with(MOE);
        let is_product = node.op_type != ATTENTION;
        let outputs = node.output.clone();
        for (i, input) in node.input.iter_mut().enumerate() {
            let is_number = if is_mixture {
                i < MOE_NUMBERS
            } else if is_product {
                i == 0
            } else {
                !gqa::PAST_KEY_VALUE.contains(&i) && i != gqa::SEQLENS_K && i != gqa::TOTAL_SEQUENCE_LENGTH
            };
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
        attribute: vec![Attribute { name: "to".into(), i: Some(to as i64), r#type, ..Attribute::default() }],
        ..Node::default()
    }
}

/// Whether a constant is in float16 and is not cast before it is used, as the scales of quantized weights are in float32 graphs.
pub(super) fn computes_in_float16(graph: &Graph) -> bool {
    let half = i32::from(ElementType::Float16);
    let is_read =
        |name: &String| graph.node.iter().any(|node| node.op_type != "Cast" && node.input.contains(name));
    graph.initializer.iter().any(|tensor| tensor.data_type == half && is_read(&tensor.name))
}

/// The values of a graph that computes in float16: all but the outputs of casts to other types. Empty for one that does not.
fn float16_values(graph: &Graph) -> BTreeSet<String> {
    let half = i32::from(ElementType::Float16);
    if !computes_in_float16(graph) {
        return BTreeSet::new();
    }
    let is_cast =
        |node: &&Node| node.op_type == "Cast" && node.attribute.iter().all(|to| to.i != Some(half.into()));
    let casts: BTreeSet<&String> = graph.node.iter().filter(is_cast).flat_map(|node| &node.output).collect();
    let halfs = graph.initializer.iter().filter(|tensor| tensor.data_type == half).map(|tensor| &tensor.name);
    let values = graph.node.iter().flat_map(|node| &node.output).filter(|output| !casts.contains(output));
    values.chain(halfs).cloned().collect()
}
