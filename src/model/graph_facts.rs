//! Facts about the decode steps of a graph: whether they can be captured, how many bytes of weights they read, and the types
//! of their inputs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    manifest::{Dtype, GraphNames, Lengths},
    onnx::{ElementType, Graph, Node, Tensor, gqa, moe},
    units::Bytes,
};

/// Operators that read only a few rows of a table.
const READ_ROWS: [&str; 3] = ["Gather", "GatherBlockQuantized", gqa::NAME];

/// Whether a step of `graph` can be captured as a CUDA graph and repeated at another length: only attention may read the
/// total length.
///
/// Captured steps may differ only in the length that the device holds. The total length is read on the host when work is
/// submitted: attention treats it as an upper bound, so the capacity of the cache is right for every step. Other nodes that
/// read it would compute with that length: ALiBi has a tensor of the total's shape.
pub(super) fn can_repeat_steps(graph: &Graph, names: &GraphNames) -> bool {
    let Lengths::Separate { total_sequence_length: total, .. } = &names.lengths else { return false };
    let mut reading = graph.node.iter().filter(|node| node.input.contains(total));
    reading.all(|node| node.op_type == gqa::NAME)
}

/// Bytes of external data that a step of one token reads: all of most tensors, and of experts those that the token has.
pub(super) fn weights_read(graph: &Graph) -> Bytes {
    let length = |tensor: &Tensor| {
        let entry = tensor.external_data.iter().find(|entry| entry.key == "length")?;
        entry.value.parse::<u64>().ok()
    };
    let bytes: BTreeMap<&str, u64> =
        graph.initializer.iter().filter_map(|tensor| Some((&*tensor.name, length(tensor)?))).collect();
    let (experts, others): (Vec<&Node>, Vec<&Node>) =
        graph.node.iter().partition(|node| node.domain == moe::DOMAIN);
    let reading = others.iter().filter(|node| !READ_ROWS.contains(&&*node.op_type));
    let read: BTreeSet<&str> = reading.flat_map(|node| &node.input).map(String::as_str).collect();
    let whole: u64 = read.iter().filter_map(|name| bytes.get(name)).sum();
    let of_experts = |node: &&Node| {
        let number = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name)?.i;
        let number = |name: &str| number(name).and_then(|number| u64::try_from(number).ok()).unwrap_or(1);
        let all: u64 = node.input.iter().filter_map(|name| bytes.get(&**name)).sum();
        all / number(moe::EXPERTS).max(1) * number(moe::CHOSEN)
    };
    Bytes(whole + experts.iter().map(of_experts).sum::<u64>())
}

/// The element type that `graph` declares for an input; `None` if the input is missing or not floating-point.
pub(super) fn declared_dtype(graph: &Graph, input: &str) -> Option<Dtype> {
    let declared = graph.input.iter().find(|value| value.name == input)?.r#type.as_ref()?;
    let element = declared.tensor_type.as_ref()?.elem_type;
    [
        (ElementType::Float, Dtype::Float32),
        (ElementType::Float16, Dtype::Float16),
        (ElementType::Bfloat16, Dtype::Bfloat16),
    ]
    .into_iter()
    .find_map(|(one, dtype)| (element == i32::from(one)).then_some(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attribute, StringEntry};

    fn node(op_type: &str, input: &[&str]) -> Node {
        let input = input.iter().map(|name| (*name).into()).collect();
        Node { op_type: op_type.into(), input, ..Node::default() }
    }

    fn weight(name: &str, length: u64) -> Tensor {
        let external_data = vec![StringEntry { key: "length".into(), value: length.to_string() }];
        Tensor { name: name.into(), external_data, ..Tensor::default() }
    }

    fn names() -> GraphNames {
        serde_json::from_value(serde_json::json!({
            "file": "model.onnx", "input_ids": "input_ids", "logits": "logits",
            "lengths": { "given": {
                "seqlens_k": "last", "total_sequence_length": "total", "logits_index": "rows"
            } },
            "past_key": "k", "past_value": "v", "present_key": "pk", "present_value": "pv",
        }))
        .unwrap()
    }

    #[test]
    fn steps_repeat_if_only_attention_reads_the_total_and_lookup_tables_are_not_counted() {
        let attention = node(gqa::NAME, &["qkv", "", "", "k", "v", "last", "total", "cos"]);
        let mut graph = Graph {
            node: vec![
                node("Gather", &["table", "input_ids"]),
                node("MatMulNBits", &["x", "codes", "scales"]),
                attention,
                node("FusedMatMul", &["y", "head"]),
            ],
            initializer: [("table", 1000), ("codes", 40), ("scales", 5), ("cos", 300), ("head", 70)]
                .map(|(name, length)| weight(name, length))
                .into(),
            ..Graph::default()
        };
        assert!(can_repeat_steps(&graph, &names()));
        assert_eq!(weights_read(&graph), Bytes(115));
        // Of eight experts a token has two.
        let number = |name: &str, i| Attribute { name: name.into(), i: Some(i), ..Attribute::default() };
        let attribute = vec![number(moe::EXPERTS, 8), number(moe::CHOSEN, 2)];
        let experts = node("MixtureOfExperts0", &["x", "logits", "gates"]);
        graph.node.push(Node { domain: moe::DOMAIN.into(), attribute, ..experts });
        graph.initializer.push(weight("gates", 800));
        assert_eq!(weights_read(&graph), Bytes(315));
        // ALiBi.
        graph.node.push(node("Range", &["zero", "total", "one"]));
        assert!(!can_repeat_steps(&graph, &names()));
    }
}
