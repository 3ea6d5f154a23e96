//! The hidden states that the head turns into logits, as one more output of a graph.

use crate::onnx::{Dimension, ElementType, Extent, Graph, Node, Shape, TensorType, Type, ValueInfo};

/// The output with hidden states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HiddenStates {
    pub(super) output: String,
    /// The node of the head, which reads them.
    pub(super) head: String,
}

/// Operators between the head's product and the logits: a bias, a scale, a cap, a cast.
const AFTER_HEAD: [&str; 5] = ["Add", "Cast", "Div", "Mul", "Tanh"];

/// Declares the input of the head as an output, `[1, rows, hidden]`. `is_product` recognises products that
/// take float32. `None` where the logits do not come from one.
pub(super) fn expose(
    graph: &mut Graph,
    (logits, hidden): (&str, usize),
    is_product: impl Fn(&Node) -> bool,
) -> Option<HiddenStates> {
    /// More than any head has.
    const MAX_STEPS: usize = 8;
    let (mut name, mut found) = (logits, None);
    for _ in 0..MAX_STEPS {
        let node = graph.node.iter().find(|node| node.output.iter().any(|output| output == name))?;
        let input = node.input.first()?;
        if is_product(node) {
            found = Some(HiddenStates { output: input.clone(), head: node.name.clone() });
            break;
        }
        if !AFTER_HEAD.contains(&&*node.op_type) {
            return None;
        }
        name = input;
    }
    let found = found?;
    let sizes = [
        Extent::Known(1),
        Extent::Named("hidden_rows".into()),
        Extent::Known(i64::try_from(hidden).unwrap_or(i64::MAX)),
    ];
    let shape = Shape { dim: sizes.map(|size| Dimension { value: Some(size) }).into() };
    let tensor = TensorType { elem_type: ElementType::Float.into(), shape: Some(shape) };
    let r#type = Some(Type { tensor_type: Some(tensor) });
    graph.output.push(ValueInfo { name: found.output.clone(), r#type });
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op_type: &str, input: &str, output: &str) -> Node {
        Node {
            name: format!("{output}.node"),
            op_type: op_type.into(),
            input: vec![input.into()],
            output: vec![output.into()],
            ..Node::default()
        }
    }

    #[test]
    fn the_input_of_the_head_is_found_behind_scale_and_cap() {
        let is_product = |node: &Node| node.op_type == "Product";
        let mut graph = Graph {
            node: vec![
                node("Norm", "stream", "normed"),
                node("Product", "normed", "product"),
                node("Div", "product", "scaled"),
                node("Tanh", "scaled", "logits"),
            ],
            ..Graph::default()
        };
        let expected = HiddenStates { output: "normed".into(), head: "product.node".into() };
        assert_eq!(expose(&mut graph, ("logits", 8), is_product), Some(expected));
        assert_eq!(graph.output.last().unwrap().name, "normed");
        graph.node[1].op_type = "Softmax".into();
        assert_eq!(expose(&mut graph, ("logits", 8), is_product), None);
        assert_eq!(expose(&mut graph, ("missing", 8), is_product), None);
    }

    #[test]
    fn a_graph_that_turns_in_a_circle_ends() {
        let mut graph = Graph { node: vec![node("Add", "a", "a")], ..Graph::default() };
        assert_eq!(expose(&mut graph, ("a", 8), |_| false), None);
    }
}
