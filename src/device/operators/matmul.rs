//! The operators that multiply: by packed weights, and by float weights as they are in the file.

use std::{
    ops::Range,
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;
use ort::{
    AsPointer,
    operator::{BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::{TensorElementType, ValueRef},
};

use super::{
    super::threads::ThreadLimits,
    cpu_isa::CpuIsa,
    float_product::{FloatProduct, FloatWeights},
    low_rank::AdapterSlot,
    low_rank_product::{ActiveNode, NodeAdapters},
    names::{MATMUL_FLOAT16, MATMUL_FLOAT32, MATRIX, PRODUCT},
    packed_weights::PackedWeights,
    parts::Parts,
    quantized_product::{Product, Rounded, Rounding},
    tensors::{address, sizes},
};

/// `eka:MatMulInt4` and `eka:MatMulInt8`: input `[.., depth]`, output `[.., columns]`, both float32.
pub(super) struct QuantizedMatMul {
    pub(super) name: &'static str,
    pub(super) matrices: Vec<Arc<PackedWeights>>,
    /// Rounded activations of the node that is running. All nodes share this buffer, because they run one after the other, and
    /// a buffer for each would take a third of the weights' memory.
    pub(super) rounded: Arc<Mutex<Rounded>>,
    pub(super) limits: ThreadLimits,
    pub(super) kind: CpuIsa,
    pub(super) adapters: AdapterSlot,
}

impl Operator for QuantizedMatMul {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        self.name
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CPUExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        let number = context.get::<i64>(MATRIX).and_then(|number| usize::try_from(number).ok());
        let matrix = number.and_then(|number| self.matrices.get(number));
        let matrix = matrix.ok_or_else(|| ort::Error::new("it names no matrix of this graph"))?;
        Ok(Box::new(QuantizedNode {
            matrix: Arc::clone(matrix),
            rounded: Arc::clone(&self.rounded),
            limits: self.limits.clone(),
            kind: self.kind,
            adapters: node_adapters(&self.adapters, context),
        }))
    }
}

/// One node with packed weights.
struct QuantizedNode {
    matrix: Arc<PackedWeights>,
    rounded: Arc<Mutex<Rounded>>,
    limits: ThreadLimits,
    kind: CpuIsa,
    adapters: NodeAdapters,
}

impl Kernel for QuantizedNode {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (matrix, kind) = (&*self.matrix, self.kind);
        let input = context.input(0)?.ok_or_else(|| ort::Error::new("the input is missing"))?;
        let (input, output_shape) = activations(&input, [matrix.columns(), matrix.depth()])?;
        let adapters = self.adapters.active();
        let changed = adapters.as_ref().and_then(|adapters| adapters.input(input));
        let input = changed.as_deref().unwrap_or(input);
        let mut output = context
            .output(0, output_shape.as_slice())?
            .ok_or_else(|| ort::Error::new("the output is missing"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let rows = input.len() / matrix.depth();
        // Content that a panic left half-written is overwritten.
        let mut rounded = self.rounded.lock().unwrap_or_else(PoisonError::into_inner);
        rounded.resize(rows, matrix);
        // SAFETY: the processor has these instructions.
        let rounding = unsafe { Rounding::new(input, matrix, kind, &mut rounded) };
        let groups = rounding.groups();
        if groups == 1 {
            // SAFETY: one call, for the one group.
            unsafe { rounding.group(0) };
        } else {
            // SAFETY: a call for each group.
            context.par_for(groups, self.limits.batches(rows), |group| unsafe { rounding.group(group) })?;
        }
        let read = |adapters: ActiveNode| adapters.read(context, &self.limits, kind, (input, matrix.depth()));
        let added = adapters.map(read).transpose()?;
        let output = Parts::of(output);
        let product = Product { matrix, rounded: rounded.all(), output };
        shared(context, &self.limits, [rows, matrix.panels()], |panels| {
            // SAFETY: shares do not overlap; the processor has these instructions.
            unsafe { product.panels(kind, panels.clone()) };
            if let Some(added) = &added {
                // SAFETY: as above.
                unsafe { added.panels(kind, panels, output) };
            }
        })
    }
}

/// `eka:MatMulFloat32` and `eka:MatMulFloat16`: inputs `[.., depth]` in float32 and `[columns, depth]` in the type of the
/// name, output `[.., columns]` in float32.
pub(super) struct FloatMatMul {
    pub(super) is_half: bool,
    pub(super) limits: ThreadLimits,
    pub(super) kind: CpuIsa,
    pub(super) adapters: AdapterSlot,
}

impl Operator for FloatMatMul {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        if self.is_half { MATMUL_FLOAT16 } else { MATMUL_FLOAT32 }
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CPUExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let weights = if self.is_half { TensorElementType::Float16 } else { TensorElementType::Float32 };
        [OperatorInput::required(TensorElementType::Float32), OperatorInput::required(weights)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<BoxedKernel<'a>> {
        Ok(Box::new(FloatNode {
            is_half: self.is_half,
            limits: self.limits.clone(),
            kind: self.kind,
            adapters: node_adapters(&self.adapters, context),
        }))
    }
}

/// One node with float weights.
struct FloatNode {
    is_half: bool,
    limits: ThreadLimits,
    kind: CpuIsa,
    adapters: NodeAdapters,
}

impl Kernel for FloatNode {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let (input, matrix) =
            (context.input(0)?.ok_or_else(missing)?, context.input(1)?.ok_or_else(missing)?);
        let shape = matrix.dtype().tensor_shape().map(|shape| sizes(shape)).unwrap_or_default();
        let [columns, depth] = shape[..] else {
            return Err(ort::Error::new(format!("a matrix of {shape:?}")));
        };
        let weights = if self.is_half {
            let first = address(matrix.ptr())?.cast::<f16>();
            // SAFETY: the tensor has this shape, and the type that the operator declares; it is a weight, which nothing
            // writes to.
            FloatWeights::Float16(unsafe { slice::from_raw_parts(first, columns * depth) })
        } else {
            FloatWeights::Float32(matrix.try_extract_tensor::<f32>()?.1)
        };
        let (input, output_shape) = activations(&input, [columns, depth])?;
        let adapters = self.adapters.active();
        let changed = adapters.as_ref().and_then(|adapters| adapters.input(input));
        let input = changed.as_deref().unwrap_or(input);
        let mut output = context
            .output(0, output_shape.as_slice())?
            .ok_or_else(|| ort::Error::new("the output is missing"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let (rows, kind, output) = (input.len() / depth, self.kind, Parts::of(output));
        let read = |adapters: ActiveNode| adapters.read(context, &self.limits, kind, (input, depth));
        let added = adapters.map(read).transpose()?;
        let product = FloatProduct { weights, input, depth, columns, output };
        shared(context, &self.limits, [rows, product.panels()], |panels| {
            // SAFETY: shares do not overlap; the processor has these instructions.
            unsafe { product.compute(kind, panels.clone()) };
            if let Some(added) = &added {
                // SAFETY: as above.
                unsafe { added.panels(kind, panels, output) };
            }
        })
    }
}

/// The adapters of the node that `context` creates a kernel for.
fn node_adapters(slot: &AdapterSlot, context: &KernelContext) -> NodeAdapters {
    let number = context.get::<i64>(PRODUCT).and_then(|number| usize::try_from(number).ok());
    NodeAdapters { slot: slot.clone(), number }
}

/// The activations of an input for a matrix of `[columns, depth]`, and the shape of the product.
fn activations<'a>(
    input: &'a ValueRef<'_>,
    [columns, depth]: [usize; 2],
) -> ort::Result<(&'a [f32], Vec<i64>)> {
    let (shape, input) = input.try_extract_tensor::<f32>()?;
    if depth == 0 || shape.last().is_none_or(|last| usize::try_from(*last) != Ok(depth)) {
        return Err(ort::Error::new(format!("an input of {shape:?} for a matrix of depth {depth}")));
    }
    let mut output = shape.to_vec();
    if let Some(last) = output.last_mut() {
        *last = i64::try_from(columns).unwrap_or(i64::MAX);
    }
    Ok((input, output))
}

/// Into how many tasks a thread's share of a product is split, for each row.
const TASKS_PER_THREAD: usize = 4;

/// Computes all panels of a product of `rows` rows, in shares that threads take.
fn shared(
    context: &ComputeContext,
    limits: &ThreadLimits,
    [rows, panels]: [usize; 2],
    compute: impl Fn(Range<usize>) + Sync,
) -> ort::Result<()> {
    // More tasks than threads, so that a thread that has been interrupted does not make the others wait; the more the
    // longer a panel takes.
    let threads = limits.of(rows);
    let tasks = if threads == 1 { 1 } else { panels.min(threads * TASKS_PER_THREAD * rows) };
    if tasks <= 1 {
        compute(0..panels);
        return Ok(());
    }
    let share = |task: usize| panels * task / tasks..panels * (task + 1) / tasks;
    context.par_for(tasks, limits.batches(rows), |task| compute(share(task)))
}
