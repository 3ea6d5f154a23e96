//! Replaces the nodes that compute experts by eka's operators.

use super::{
    external_data::{Initializers, TensorRange},
    packed_matrices::{Matrices, MatrixSource},
    scaled_casts::ScaleFactor,
};
use crate::{
    device::operators::{
        DOMAIN, MIXTURE, MOE, MOE_FLOAT16, MOE_FLOAT32, MOE_NUMBERS, Mixture, Operators, Routing, Scores,
        SwiGlu, WeightBits,
    },
    onnx::{Attribute, AttributeType, ElementType, Node, moe},
};

/// A node that computes experts.
pub(super) struct Experts {
    node: MoeNode,
    operator: &'static str,
    /// The weights of gate, up and down, an expert each; none for float weights.
    sources: [Vec<MatrixSource>; 3],
}

impl Experts {
    /// The experts of `node`, if it has some that eka's operators support.
    pub(super) fn of(node: &Node, initializers: &Initializers) -> Option<Self> {
        if node.domain != moe::DOMAIN || !node.op_type.starts_with(moe::NAME) {
            return None;
        }
        let node = Settings(node).read()?;
        let (sources, operator) = node.sources(initializers)?;
        Some(Self { node, operator, sources })
    }

    /// The matrices to pack.
    pub(super) fn sources(&self) -> impl Iterator<Item = &MatrixSource> {
        self.sources.iter().flatten()
    }

    /// Replaces `node`, which they are of, if all their matrices could be packed.
    pub(super) fn replace(self, node: &mut Node, matrices: &Matrices, operators: &mut Operators) {
        let packed = |sources: Vec<MatrixSource>| {
            sources.iter().map(|source| matrices.get(source).cloned()).collect::<Option<Vec<_>>>()
        };
        let [Some(gate), Some(up), Some(down)] = self.sources.map(packed) else { return };
        let mixture = Mixture { matrices: [gate, up, down], ..self.node.mixture };
        let Ok(number) = i64::try_from(operators.add_mixture(mixture)) else { return };
        (node.domain, node.op_type) = (DOMAIN.into(), self.operator.into());
        node.input = self.node.inputs;
        if self.operator == MOE {
            node.input.truncate(MOE_NUMBERS);
        }
        let r#type = AttributeType::Int.into();
        node.attribute =
            vec![Attribute { name: MIXTURE.into(), i: Some(number), r#type, ..Attribute::default() }];
    }
}

/// The attributes of a node.
struct Settings<'a>(&'a Node);

/// What a node computes.
struct MoeNode {
    /// Without matrices.
    mixture: Mixture,
    /// The operator's numbers, and then weights as the node has them.
    inputs: Vec<String>,
    /// Columns and depth of gate, up and down.
    shapes: [[usize; 2]; 3],
    /// Bits, block size and whether there are zero points, of gate, up and down; bits are zero for float weights.
    formats: [(usize, usize, bool); 3],
}

impl Settings<'_> {
    fn int(&self, name: &str) -> Option<usize> {
        let found = self.0.attribute.iter().find(|attribute| attribute.name == name)?;
        usize::try_from(found.i?).ok()
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)?.f
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.int(name).map(|flag| flag == 1)
    }

    fn read(&self) -> Option<MoeNode> {
        let scores = match self.int(moe::SCORES)? {
            moe::SOFTMAX => Scores::Softmax,
            moe::SIGMOID => Scores::Sigmoid,
            moe::SOFTMAX_OF_CHOSEN => Scores::SoftmaxOfChosen,
            moe::SPARSE_MIXER => Scores::SparseMixer { tolerance: self.float(moe::TOLERANCE)? },
            _ => return None,
        };
        let routing = Routing {
            experts: self.int(moe::EXPERTS)?,
            chosen: self.int(moe::CHOSEN)?,
            scores,
            least_sum: self.flag(moe::NORMALIZED)?.then_some(moe::LEAST_SUM),
            scale: self.float(moe::SCALE)?,
            groups: self.int(moe::GROUPS)?,
            chosen_groups: self.int(moe::CHOSEN_GROUPS)?,
            group_best: self.int(moe::GROUP_BEST)?,
        };
        let activation = SwiGlu {
            alpha: self.float(moe::ALPHA)?,
            limit: self.float(moe::LIMIT).filter(|limit| *limit > 0.0),
            up_offset: self.float(moe::UP_OFFSET)?,
        };
        let (hidden, width) = (self.int(moe::HIDDEN)?, self.int(moe::WIDTH)?);
        let mut formats = [(0, 0, false); 3];
        for (part, format) in formats.iter_mut().enumerate() {
            let has_zero_points = self.flag(moe::ZERO_POINTS[part])?;
            *format = (self.int(moe::BITS[part])?, self.int(moe::BLOCK_SIZE[part])?, has_zero_points);
        }
        let scales_input = self.flag(moe::SCALES_INPUT)?;
        let is_supported = routing.is_consistent() && hidden > 0 && width > 0;
        is_supported.then_some(())?;
        Some(MoeNode {
            mixture: Mixture { routing, activation, scales_input, matrices: <[_; 3]>::default() },
            inputs: self.inputs()?,
            shapes: [[width, hidden], [width, hidden], [hidden, width]],
            formats,
        })
    }

    /// The inputs, with empty names for numbers that the node does not have.
    fn inputs(&self) -> Option<Vec<String>> {
        let mut given = self.0.input.iter().cloned();
        let mut inputs: Vec<String> = given.by_ref().take(2).collect();
        let corrections = usize::from(self.flag(moe::CORRECTION)?);
        let biases = if self.flag(moe::BIASES)? { 3 } else { 0 };
        for (count, of) in [(corrections, 1), (biases, 3)] {
            inputs.extend(given.by_ref().take(count));
            inputs.extend((count..of).map(|_| String::new()));
        }
        inputs.extend(given);
        (inputs.len() > MOE_NUMBERS).then_some(inputs)
    }
}

impl MoeNode {
    /// The weights of gate, up and down, none where they are floats, and the operator for them.
    fn sources(&self, initializers: &Initializers) -> Option<([Vec<MatrixSource>; 3], &'static str)> {
        let mut tensors = self.inputs[MOE_NUMBERS..].iter().map(|name| initializers.get(&**name).copied());
        let mut sources = <[Vec<_>; 3]>::default();
        if self.formats.iter().all(|(bits, ..)| *bits == 0) {
            let elements =
                [tensors.next()??, tensors.next()??, tensors.next()??].map(|tensor| tensor.data_type);
            let are_all = |element: ElementType| elements.iter().all(|one| *one == i32::from(element));
            let operator = if are_all(ElementType::Float) {
                MOE_FLOAT32
            } else if are_all(ElementType::Float16) {
                MOE_FLOAT16
            } else {
                return None;
            };
            return Some((sources, operator));
        }
        let experts = self.mixture.routing.experts;
        for (part, sources) in sources.iter_mut().enumerate() {
            let (bits, block, has_zero_points) = self.formats[part];
            let [columns, depth] = self.shapes[part];
            WeightBits::of(bits)?;
            let (codes, scales) = (tensors.next()??, tensors.next()??);
            let zero_points = if has_zero_points { Some(tensors.next()??) } else { None };
            for expert in 0..experts {
                let of = |tensor| TensorRange::part(tensor, expert, experts);
                let zero_points = match zero_points {
                    Some(tensor) => Some(of(tensor)?),
                    None => None,
                };
                let (codes, scales) = (of(codes)?, of(scales)?);
                let factor = ScaleFactor::ONE;
                sources.push(MatrixSource {
                    bits,
                    columns,
                    depth,
                    block,
                    codes,
                    scales,
                    factor,
                    zero_points,
                });
            }
        }
        Some((sources, MOE))
    }
}
