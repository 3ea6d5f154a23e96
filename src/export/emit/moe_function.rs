//! The experts of a sparse MLP in plain nodes, as a function of the graph.
//!
//! Experts are computed one after the other, each for the tokens that have chosen it:
//!
//! ```text
//! ids, weights = choose(logits)
//! for expert in experts:
//!     if any token has chosen it:
//!         rows = the tokens that have
//!         sum[rows] += weight · down(swiglu(gate(rows), up(rows)))
//! ```
//!
//! Weights of an expert are gathered, and quantized ones decoded, when it is its turn; so this is far slower than eka's operator,
//! which computes the same.

use super::super::{
    graph::{Op, float_attribute, graph_attribute, int_attribute, ints_attribute, opsets},
    quantize::{Quantizer, ZeroPoints},
};
use crate::onnx::{Attribute, ElementType, Function, Graph, Node, Shape, TensorType, Type, ValueInfo, moe};

/// The matrices of all experts for one of their products.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projection {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// None for float weights.
    pub(super) quantizer: Option<Quantizer>,
}

/// Defines the function `name` of the node that has `attributes`, over numbers of type `float`.
pub(super) fn define(
    name: &str,
    attributes: &[Attribute],
    projections: &[Projection],
    float: ElementType,
) -> Function {
    let mut inputs = vec!["tokens".to_owned(), "logits".to_owned()];
    let mut body = Body { attributes, float, values: 0, nodes: Vec::new() };
    if body.int(moe::CORRECTION) == 1 {
        inputs.push("correction".into());
    }
    if body.int(moe::BIASES) == 1 {
        inputs.extend(PARTS.map(|part| format!("{part}.bias")));
    }
    for (part, projection) in PARTS.iter().zip(projections) {
        let tensors: &[&str] = match projection.quantizer {
            None => &["weight"],
            Some(Quantizer { zero_points: ZeroPoints::Middle, .. }) => &["codes", "scales"],
            Some(_) => &["codes", "scales", "zero_points"],
        };
        inputs.extend(tensors.iter().map(|tensor| format!("{part}.{tensor}")));
    }
    body.function(projections);
    Function {
        name: name.into(),
        input: inputs,
        output: vec!["output".into()],
        attribute: attributes.iter().map(|attribute| attribute.name.clone()).collect(),
        node: body.nodes,
        opset_import: opsets(None),
        domain: moe::DOMAIN.into(),
    }
}

const PARTS: [&str; 3] = ["gate", "up", "down"];

/// Nodes of a function, or of a graph within it.
struct Body<'a> {
    attributes: &'a [Attribute],
    float: ElementType,
    /// How many values have names.
    values: usize,
    nodes: Vec<Node>,
}

/// The experts of every token and their weights, `[tokens, chosen]`.
struct Choice {
    ids: String,
    weights: String,
}

impl Body<'_> {
    fn int(&self, name: &str) -> i64 {
        let found = self.attributes.iter().find(|attribute| attribute.name == name);
        found.and_then(|attribute| attribute.i).unwrap_or(0)
    }

    fn float(&self, name: &str) -> f32 {
        let found = self.attributes.iter().find(|attribute| attribute.name == name);
        found.and_then(|attribute| attribute.f).unwrap_or(0.0)
    }

    fn value(&mut self) -> String {
        self.values += 1;
        format!("value.{}", self.values)
    }

    fn add_to(&mut self, output: &str, op: &str, inputs: &[&str], attributes: Vec<Attribute>) {
        self.nodes.push(Op::plain(op, inputs, &[output]).with(attributes).node());
    }

    fn with(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        let output = self.value();
        self.add_to(&output, op, inputs, attributes);
        output
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.with(op, inputs, Vec::new())
    }

    fn microsoft(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        let output = self.value();
        self.nodes.push(Op::microsoft(op, inputs, &[&output]).with(attributes).node());
        output
    }

    fn scalar(&mut self, value: f32) -> String {
        self.with("Constant", &[], vec![float_attribute("value_float", value)])
    }

    fn number(&mut self, value: i64) -> String {
        let value = Attribute { i: Some(value), ..int_attribute("value_int", 0) };
        self.with("Constant", &[], vec![value])
    }

    fn numbers(&mut self, values: &[i64]) -> String {
        self.with("Constant", &[], vec![ints_attribute("value_ints", values.to_vec())])
    }

    fn cast(&mut self, input: &str, to: ElementType) -> String {
        self.with("Cast", &[input], vec![int_attribute("to", to as usize)])
    }

    fn reshape(&mut self, input: &str, dims: &[i64]) -> String {
        let dims = self.numbers(dims);
        self.op("Reshape", &[input, &dims])
    }

    /// A reduction of the last dimension, which stays with a size of one.
    fn reduce_last(&mut self, op: &str, input: &str) -> String {
        let last = self.numbers(&[-1]);
        self.with(op, &[input, &last], vec![int_attribute("keepdims", 1)])
    }

    fn last_axis(name: &str) -> Attribute {
        Attribute { i: Some(-1), ..int_attribute(name, 0) }
    }

    /// The greatest `count` of each row, and where they are.
    fn top(&mut self, input: &str, count: i64) -> [String; 2] {
        let count = self.numbers(&[count]);
        let outputs = [self.value(), self.value()];
        let [values, places] = [&*outputs[0], &*outputs[1]];
        let attributes = vec![Self::last_axis("axis")];
        self.nodes.push(Op::plain("TopK", &[input, &count], &[values, places]).with(attributes).node());
        outputs
    }

    fn function(&mut self, projections: &[Projection]) {
        let (hidden, experts) = (self.int(moe::HIDDEN), self.int(moe::EXPERTS));
        let tokens = self.reshape("tokens", &[-1, hidden]);
        let logits = self.reshape("logits", &[-1, experts]);
        let logits = self.cast(&logits, ElementType::Float);
        let choice = self.choose(&logits);
        let choice = self.weigh(choice);
        let zero = self.scalar(0.0);
        let zero = self.cast(&zero, self.float);
        let nothing = self.op("Mul", &[&tokens, &zero]);
        let count = self.number(experts);
        let turn = self.turn(&tokens, &choice, projections);
        let body = vec![graph_attribute("body", turn)];
        let sum = self.with("Loop", &[&count, "", &nothing], body);
        let dims = self.numbers(&[1, -1, hidden]);
        self.add_to("output", "Reshape", &[&sum, &dims], Vec::new());
    }

    fn choose(&mut self, logits: &str) -> Choice {
        let chosen = self.int(moe::CHOSEN);
        let scores = usize::try_from(self.int(moe::SCORES)).unwrap_or_default();
        let softmax = vec![Self::last_axis("axis")];
        let scores = match scores {
            moe::SPARSE_MIXER => return self.sparse_mixer(logits),
            moe::SOFTMAX_OF_CHOSEN => {
                let [values, ids] = self.top(logits, chosen);
                return Choice { ids, weights: self.with("Softmax", &[&values], softmax) };
            }
            moe::SIGMOID => self.op("Sigmoid", &[logits]),
            _ => self.with("Softmax", &[logits], softmax),
        };
        let mut ranks = scores.clone();
        if self.int(moe::CORRECTION) == 1 {
            ranks = self.op("Add", &[&scores, "correction"]);
        }
        if self.int(moe::GROUPS) > 1 {
            ranks = self.keep_groups(&ranks);
        }
        let [_, ids] = self.top(&ranks, chosen);
        let weights = self.with("GatherElements", &[&scores, &ids], vec![Self::last_axis("axis")]);
        Choice { ids, weights }
    }

    /// `ranks` with nothing left but the experts of the best groups.
    fn keep_groups(&mut self, ranks: &str) -> String {
        let (experts, groups) = (self.int(moe::EXPERTS), self.int(moe::GROUPS));
        let grouped = self.reshape(ranks, &[-1, groups, experts / groups]);
        let [best, _] = self.top(&grouped, self.int(moe::GROUP_BEST));
        let scores = self.reduce_last("ReduceSum", &best);
        let scores = self.reshape(&scores, &[-1, groups]);
        let [kept, _] = self.top(&scores, self.int(moe::CHOSEN_GROUPS));
        let least = self.reduce_last("ReduceMin", &kept);
        let is_kept = self.op("GreaterOrEqual", &[&scores, &least]);
        let is_kept = self.reshape(&is_kept, &[-1, groups, 1]);
        let never = self.scalar(f32::NEG_INFINITY);
        let kept = self.op("Where", &[&is_kept, &grouped, &never]);
        self.reshape(&kept, &[-1, experts])
    }

    fn sparse_mixer(&mut self, logits: &str) -> Choice {
        let never = self.scalar(f32::NEG_INFINITY);
        let tolerance = self.scalar(self.float(moe::TOLERANCE));
        let all: Vec<i64> = (0..self.int(moe::EXPERTS)).collect();
        let all = self.numbers(&all);
        let sizes = self.op("Abs", &[logits]);
        let (mut rest, mut ids, mut weights) = (logits.to_owned(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let most = self.reduce_last("ReduceMax", &rest);
            let size = self.op("Max", &[&sizes, &most]);
            let apart = self.op("Sub", &[&most, logits]);
            let apart = self.op("Div", &[&apart, &size]);
            let is_far = self.op("Greater", &[&apart, &tolerance]);
            let near = self.op("Where", &[&is_far, &never, &rest]);
            let shares = self.with("Softmax", &[&near], vec![Self::last_axis("axis")]);
            weights.push(self.reduce_last("ReduceMax", &shares));
            let id =
                self.with("ArgMax", &[&rest], vec![Self::last_axis("axis"), int_attribute("keepdims", 1)]);
            let is_it = self.op("Equal", &[&all, &id]);
            rest = self.op("Where", &[&is_it, &never, &rest]);
            ids.push(id);
        }
        let last = || vec![Self::last_axis("axis")];
        let ids = self.with("Concat", &[&ids[0], &ids[1]], last());
        let weights = self.with("Concat", &[&weights[0], &weights[1]], last());
        Choice { ids, weights }
    }

    /// The choice with its weights normalised and scaled, in the type of tokens.
    fn weigh(&mut self, choice: Choice) -> Choice {
        let Choice { ids, mut weights } = choice;
        if self.int(moe::NORMALIZED) == 1 {
            let sum = self.reduce_last("ReduceSum", &weights);
            let least = self.scalar(moe::LEAST_SUM);
            let sum = self.op("Max", &[&sum, &least]);
            weights = self.op("Div", &[&weights, &sum]);
        }
        let scale = self.float(moe::SCALE);
        if scale.to_bits() != 1f32.to_bits() {
            let scale = self.scalar(scale);
            weights = self.op("Mul", &[&weights, &scale]);
        }
        let weights = self.cast(&weights, self.float);
        Choice { ids, weights }
    }

    /// The body of the loop over experts: adds what the expert of number `expert` gives to `sum`.
    fn turn(&mut self, tokens: &str, choice: &Choice, projections: &[Projection]) -> Graph {
        let outer = std::mem::take(&mut self.nodes);
        let is_chosen = self.op("Equal", &[&choice.ids, "expert"]);
        let is_chosen = self.cast(&is_chosen, self.float);
        let first = self.numbers(&[1]);
        let drop = || vec![int_attribute("keepdims", 0)];
        let tokens_chosen = self.with("ReduceMax", &[&is_chosen, &first], drop());
        let any = self.with("ReduceMax", &[&tokens_chosen], drop());
        let any = self.cast(&any, ElementType::Bool);
        let weights = self.op("Mul", &[&choice.weights, &is_chosen]);
        let weights = self.with("ReduceSum", &[&weights, &first], vec![int_attribute("keepdims", 1)]);
        let computed = self.computed((tokens, &tokens_chosen, &weights), projections);
        let skipped = Graph {
            name: "skipped".into(),
            node: vec![Op::plain("Identity", &["sum"], &["sum.skipped"]).node()],
            output: vec![value("sum.skipped", self.float)],
            ..Graph::default()
        };
        let branches =
            vec![graph_attribute("then_branch", computed), graph_attribute("else_branch", skipped)];
        self.add_to("sum.next", "If", &[&any], branches);
        self.add_to("continue.next", "Identity", &["continue"], Vec::new());
        let node = std::mem::replace(&mut self.nodes, outer);
        Graph {
            name: "expert".into(),
            node,
            input: vec![
                scalar("expert", ElementType::Int64),
                scalar("continue", ElementType::Bool),
                value("sum", self.float),
            ],
            output: vec![scalar("continue.next", ElementType::Bool), value("sum.next", self.float)],
            ..Graph::default()
        }
    }

    /// The branch of an expert that some tokens have chosen.
    fn computed(
        &mut self,
        (tokens, is_chosen, weights): (&str, &str, &str),
        projections: &[Projection],
    ) -> Graph {
        let outer = std::mem::take(&mut self.nodes);
        let rows = self.op("NonZero", &[is_chosen]);
        let rows = self.reshape(&rows, &[-1]);
        let first = || vec![int_attribute("axis", 0)];
        let mut inputs = self.with("Gather", &[tokens, &rows], first());
        let weights = self.with("Gather", &[weights, &rows], first());
        let scales_input = self.int(moe::SCALES_INPUT) == 1;
        if scales_input {
            inputs = self.op("Mul", &[&inputs, &weights]);
        }
        let gate = self.product(0, projections, &inputs);
        let up = self.product(1, projections, &inputs);
        let wide = self.swiglu(gate, up);
        let mut output = self.product(2, projections, &wide);
        if !scales_input {
            output = self.op("Mul", &[&output, &weights]);
        }
        let before = self.with("Gather", &["sum", &rows], first());
        let after = self.op("Add", &[&before, &output]);
        let places = self.reshape(&rows, &[-1, 1]);
        self.add_to("sum.computed", "ScatterND", &["sum", &places, &after], Vec::new());
        let node = std::mem::replace(&mut self.nodes, outer);
        let output = vec![value("sum.computed", self.float)];
        Graph { name: "computed".into(), node, output, ..Graph::default() }
    }

    /// The product of `input` with the expert's matrix, and its bias.
    fn product(&mut self, part: usize, projections: &[Projection], input: &str) -> String {
        let Some(Projection { columns, quantizer, .. }) = projections.get(part).copied() else {
            return input.into();
        };
        let name = |tensor: &str| format!("{}.{tensor}", PARTS[part]);
        let weights = match quantizer {
            None => self.with("Gather", &[&name("weight"), "expert"], vec![int_attribute("axis", 0)]),
            Some(quantizer) => self.decoded(&name, quantizer, columns),
        };
        let product = self.microsoft("FusedMatMul", &[input, &weights], vec![int_attribute("transB", 1)]);
        if self.int(moe::BIASES) == 0 {
            return product;
        }
        let bias = self.with("Gather", &[&name("bias"), "expert"], vec![int_attribute("axis", 0)]);
        self.op("Add", &[&product, &bias])
    }

    /// The expert's matrix, `[rows, columns]`, from its codes.
    fn decoded(&mut self, name: &impl Fn(&str) -> String, quantizer: Quantizer, columns: usize) -> String {
        let mut inputs = vec![name("codes"), "expert".into(), name("scales")];
        if quantizer.zero_points == ZeroPoints::PerBlock {
            inputs.push(name("zero_points"));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes = vec![
            int_attribute("gather_axis", 0),
            int_attribute("quantize_axis", 2),
            int_attribute("block_size", quantizer.block_size),
            int_attribute("bits", quantizer.bits.count().into()),
        ];
        let whole = self.microsoft("GatherBlockQuantized", &inputs, attributes);
        if columns.is_multiple_of(quantizer.block_size) {
            return whole;
        }
        // Without what fills the last block.
        let end = i64::try_from(columns).unwrap_or(i64::MAX);
        let [start, end, axis] = [0, end, 1].map(|number| self.numbers(&[number]));
        self.op("Slice", &[&whole, &start, &end, &axis])
    }

    fn swiglu(&mut self, mut gate: String, mut up: String) -> String {
        let (limit, offset) = (self.float(moe::LIMIT), self.float(moe::UP_OFFSET));
        if limit > 0.0 {
            let [least, most] = [-limit, limit].map(|limit| {
                let limit = self.scalar(limit);
                self.cast(&limit, self.float)
            });
            gate = self.op("Min", &[&gate, &most]);
            up = self.op("Min", &[&up, &most]);
            up = self.op("Max", &[&up, &least]);
        }
        if offset != 0.0 {
            let offset = self.scalar(offset);
            let offset = self.cast(&offset, self.float);
            up = self.op("Add", &[&up, &offset]);
        }
        let alpha = vec![float_attribute("alpha", self.float(moe::ALPHA))];
        let activated = self.microsoft("QuickGelu", &[&gate], alpha);
        self.op("Mul", &[&activated, &up])
    }
}

/// A single number.
fn scalar(name: &str, element: ElementType) -> ValueInfo {
    typed(name, element, Some(Shape::default()))
}

/// A value of any shape.
fn value(name: &str, element: ElementType) -> ValueInfo {
    typed(name, element, None)
}

fn typed(name: &str, element: ElementType, shape: Option<Shape>) -> ValueInfo {
    let tensor = TensorType { elem_type: element.into(), shape };
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type: Some(tensor) }) }
}
