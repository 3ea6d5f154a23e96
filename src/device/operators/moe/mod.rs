//! `eka:MoE`, `eka:MoEFloat32` and `eka:MoEFloat16`: the chosen experts of a sparse MLP.
//!
//! - [`routing`]: which experts a token goes to.
//! - [`experts`]: the products, grouped by expert, and their sum.
//! - [`activation`]: SwiGLU between the two products.
//!
//! Only the weights of chosen experts are read: a decode step of a model with 64 experts of which a token has 8 reads an eighth
//! of them.

mod activation;
mod experts;
mod routing;

use std::{
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;
use ort::{
    AsPointer,
    operator::{BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::{TensorElementType, ValueRef},
};

pub use activation::SwiGlu;
use experts::{Matrices, Pass, Scratch};
pub use routing::{Routing, Scores};

use super::{
    super::threads::ThreadLimits,
    cpu_isa::CpuIsa,
    float_product::FloatWeights,
    names::MIXTURE,
    packed_weights::PackedWeights,
    tensors::{address, sizes},
};

/// The operator over packed weights.
pub const MOE: &str = "MoE";

/// The operator over float32 weights.
pub const MOE_FLOAT32: &str = "MoEFloat32";

/// The operator over float16 weights.
pub const MOE_FLOAT16: &str = "MoEFloat16";

/// Inputs that are numbers of a token or of an expert: activations, the router's logits, the correction of scores, and the biases
/// of gate, up and down. Float weights of gate, up and down follow them.
pub const MOE_NUMBERS: usize = 6;

/// A sparse MLP of a graph.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// How experts are chosen.
    pub routing: Routing,
    /// What they compute between their products.
    pub activation: SwiGlu,
    /// Whether weights multiply what experts read instead of what they give.
    pub scales_input: bool,
    /// Matrices of gate, up and down, one an expert; empty for float weights, which are inputs.
    pub matrices: [Vec<Arc<PackedWeights>>; 3],
}

impl Mixture {
    /// Whether sizes belong together.
    fn is_consistent(&self) -> bool {
        let [gate, up, down] = &self.matrices;
        let is_packed = |matrices: &[Arc<PackedWeights>], [columns, depth]: [usize; 2]| {
            let is_one = |matrix: &Arc<PackedWeights>| [matrix.columns(), matrix.depth()] == [columns, depth];
            matrices.len() == self.routing.experts && matrices.iter().all(is_one)
        };
        let is_whole = gate.first().is_none_or(|first| {
            let shape = [first.columns(), first.depth()];
            let transposed = [first.depth(), first.columns()];
            is_packed(gate, shape) && is_packed(up, shape) && is_packed(down, transposed)
        });
        self.routing.is_consistent() && is_whole && gate.is_empty() == (up.len() + down.len() == 0)
    }
}

/// The type of an operator's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightType {
    Packed,
    Float32,
    Float16,
}

/// The operator: inputs `[.., hidden]`, the router's logits `[.., experts]`, and further ones of [`MOE_NUMBERS`]; output `[.., hidden]`.
pub(super) struct MixtureOfExperts {
    pub(super) weights: WeightType,
    pub(super) mixtures: Vec<Arc<Mixture>>,
    pub(super) scratch: SharedScratch,
    pub(super) limits: ThreadLimits,
    pub(super) kind: CpuIsa,
}

/// Buffers for all mixtures of a session, which run one after the other.
#[derive(Clone, Default)]
pub(super) struct SharedScratch(Arc<Mutex<Scratch>>);

impl Operator for MixtureOfExperts {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        match self.weights {
            WeightType::Packed => MOE,
            WeightType::Float32 => MOE_FLOAT32,
            WeightType::Float16 => MOE_FLOAT16,
        }
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CPUExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = TensorElementType::Float32;
        let weights = match self.weights {
            WeightType::Packed => None,
            WeightType::Float32 => Some(TensorElementType::Float32),
            WeightType::Float16 => Some(TensorElementType::Float16),
        };
        let numbers = (0..MOE_NUMBERS).map(move |number| match number {
            0 | 1 => OperatorInput::required(float),
            _ => OperatorInput::optional(float),
        });
        let weights =
            weights.into_iter().flat_map(|weights| (0..3).map(move |_| OperatorInput::optional(weights)));
        numbers.chain(weights).collect::<Vec<_>>()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        let number = context.get::<i64>(MIXTURE).and_then(|number| usize::try_from(number).ok());
        let mixture = number.and_then(|number| self.mixtures.get(number));
        let mixture = mixture.ok_or_else(|| ort::Error::new("it names no mixture of this graph"))?;
        let is_packed = self.weights == WeightType::Packed;
        if !mixture.is_consistent() || mixture.matrices[0].is_empty() == is_packed {
            return Err(ort::Error::new("the sizes of its experts do not belong together"));
        }
        Ok(Box::new(Node {
            weights: self.weights,
            mixture: Arc::clone(mixture),
            scratch: self.scratch.clone(),
            limits: self.limits.clone(),
            kind: self.kind,
        }))
    }
}

/// One node.
struct Node {
    weights: WeightType,
    mixture: Arc<Mixture>,
    scratch: SharedScratch,
    limits: ThreadLimits,
    kind: CpuIsa,
}

impl Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let mixture = &*self.mixture;
        let inputs: Vec<Option<ValueRef>> =
            (0..context.num_inputs()?).map(|number| context.input(number)).collect::<Result<_, _>>()?;
        let input = |number: usize| inputs.get(number).and_then(Option::as_ref);
        let floats = |number: usize| match input(number) {
            Some(value) => Ok(value.try_extract_tensor::<f32>()?.1),
            None => Ok::<_, ort::Error>(&[][..]),
        };
        let matrices = |number: usize| match self.weights {
            WeightType::Packed => Ok(Matrices::Packed(&mixture.matrices[number])),
            _ => float_matrices(input(MOE_NUMBERS + number), self.weights, mixture.routing.experts),
        };
        let (gate, up, down) = (matrices(0)?, matrices(1)?, matrices(2)?);
        let biases = [floats(3)?, floats(4)?, floats(5)?];
        let pass = Pass {
            routing: &mixture.routing,
            activation: mixture.activation,
            scales_input: mixture.scales_input,
            correction: floats(2)?,
            biases,
            gate,
            up,
            down,
            limits: &self.limits,
            kind: self.kind,
        };
        let tokens = input(0).ok_or_else(|| ort::Error::new("the input is missing"))?;
        let (shape, tokens) = tokens.try_extract_tensor::<f32>()?;
        let logits = floats(1)?;
        pass.check(tokens.len(), logits.len())?;
        let mut output =
            context.output(0, shape.to_vec())?.ok_or_else(|| ort::Error::new("the output is missing"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        // Content that a panic left half-written is overwritten.
        let mut scratch = self.scratch.0.lock().unwrap_or_else(PoisonError::into_inner);
        pass.compute(context, (tokens, logits), output, &mut scratch)
    }
}

impl Pass<'_> {
    /// Checks that the sizes of all inputs belong together.
    fn check(&self, tokens: usize, logits: usize) -> ort::Result<()> {
        let (hidden, width, experts) = (self.gate.depth(), self.gate.columns(), self.routing.experts);
        let is_bias = |bias: &[f32], columns: usize| bias.is_empty() || bias.len() == experts * columns;
        let is_right = hidden > 0
            && width > 0
            && [self.up.columns(), self.up.depth()] == [width, hidden]
            && [self.down.columns(), self.down.depth()] == [hidden, width]
            && tokens.is_multiple_of(hidden)
            && logits == tokens / hidden * experts
            && is_bias(self.correction, 1)
            && is_bias(self.biases[0], width)
            && is_bias(self.biases[1], width)
            && self.biases[0].is_empty() == self.biases[1].is_empty()
            && is_bias(self.biases[2], hidden);
        if is_right { Ok(()) } else { Err(ort::Error::new("the sizes of its inputs do not belong together")) }
    }
}

/// Float weights, `[experts, columns, depth]`.
fn float_matrices<'a>(
    value: Option<&'a ValueRef<'_>>,
    weights: WeightType,
    experts: usize,
) -> ort::Result<Matrices<'a>> {
    let value = value.ok_or_else(|| ort::Error::new("weights of experts are missing"))?;
    let shape = value.dtype().tensor_shape().map(|shape| sizes(shape)).unwrap_or_default();
    let [count, columns, depth] = shape[..] else {
        return Err(ort::Error::new(format!("weights of experts of {shape:?}")));
    };
    if count != experts {
        return Err(ort::Error::new(format!("weights of {count} experts, not of {experts}")));
    }
    let weights = if weights == WeightType::Float16 {
        let first = address(value.ptr())?.cast::<f16>();
        // SAFETY: the tensor has this shape, and the type that the operator declares; it is a weight, which nothing writes to.
        FloatWeights::Float16(unsafe { slice::from_raw_parts(first, count * columns * depth) })
    } else {
        FloatWeights::Float32(value.try_extract_tensor::<f32>()?.1)
    };
    Ok(Matrices::Float { weights, columns, depth })
}
