//! eka's operators for CPUs, for nodes that ONNX Runtime computes more slowly.
//!
//! - [`PackedInt4`]: int4 weights, laid out for one product only: 4.5 bits each, float16 scales beside them.
//! - `eka:MatMulInt4`: what `com.microsoft:MatMulNBits` computes at accuracy level 4, over such a matrix.
//! - `eka:Attention`: what `com.microsoft:GroupQueryAttention` computes, over a cache in half the bytes or less.
//!
//! # The parts of a step
//! TinyLlama-1.1B's shape in int4 on two threads of an AMD EPYC (Zen 4) that others used as well, medians in milliseconds:
//! a decode step without context and after 1,536 tokens, by ONNX Runtime's profiler, and prefill of 512 tokens without
//! context, by where the processor was found (norms and SwiGLU as the profiler had them):
//!
//! | operator | nodes | decode | after 1,536 | prefill |
//! |---|---|---|---|---|
//! | `eka:MatMulInt4` | 111 | 28.1 | 28.9 | 1,390 |
//! | `eka:Attention` | 22 | 0.55 | 7.5 | 130 |
//! | `SkipSimplifiedLayerNormalization` | 44 | 0.49 | 0.51 | 40 |
//! | `QuickGelu` and `Mul`, which are SwiGLU | 44 | 0.37 | 0.40 | 50 |
//! | all others | 4 | 0.04 | 0.04 | 50 |
//!
//! Norms take 1.7 % of a step, and SwiGLU 1.3 % (2.4 and 3.0 % of prefill). An operator that computes one of the two
//! together with the rounding of activations would save a part of that, so there is none: 3 % was the least that would pay
//! for one. With ONNX Runtime's own attention a token after 1,536 others takes 10 to 11 ms more than the first, with ours 5
//! to 6 since the query heads of a token are computed in pairs of lanes, as they were not yet for this table.
//!
//! ONNX Runtime calls them on its threads, as it calls its own operators. [`model`](crate::model) decides which nodes of a
//! graph they replace; a directory under `models/` does not refer to them, and loads without them.

mod attention;
mod cpu_isa;
mod gemm_int4;
mod huge_pages;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed_int4;
mod portable;
mod simd_f32;
mod simd_i8;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use ort::{
    operator::{
        BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput,
        OperatorOutput,
    },
    value::TensorElementType,
};

use super::threads::ThreadLimits;
use attention::Attention;
pub use attention::{ATTENTION, Format};
pub use cpu_isa::CpuIsa;
use gemm_int4::{Parts, Product, Rounded, Rounding};
pub use huge_pages::PackedStorage;
pub use packed_int4::{Int4Blocks, PackedInt4};

/// The domain of our operators.
pub const DOMAIN: &str = "eka";

/// The operator that multiplies by a [`PackedInt4`].
pub const MATMUL: &str = "MatMulInt4";

/// The attribute of [`MATMUL`] with the index of its matrix.
pub const MATRIX: &str = "matrix";

/// What the operators of a graph work with.
#[derive(Default)]
pub struct Operators {
    matrices: Vec<Arc<PackedInt4>>,
    cache: Option<Format>,
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators")
            .field("matrices", &self.matrices.len())
            .field("cache", &self.cache)
            .finish()
    }
}

impl Operators {
    /// Adds a matrix; its number.
    pub fn add(&mut self, matrix: PackedInt4) -> usize {
        self.matrices.push(Arc::new(matrix));
        self.matrices.len() - 1
    }

    /// Adds eka's attention, with the format of the key-value cache.
    pub fn set_cache_format(&mut self, cache: Format) {
        self.cache = Some(cache);
    }

    /// What the key-value cache is in, if attention is ours.
    #[must_use]
    pub fn cache(&self) -> Option<Format> {
        self.cache
    }

    /// Whether any of them multiplies.
    #[must_use]
    pub fn multiplies(&self) -> bool {
        !self.matrices.is_empty()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty() && self.cache.is_none()
    }

    /// As ONNX Runtime wants them, for a session with the threads of `limits`.
    pub(super) fn domain(&self, limits: &ThreadLimits) -> ort::Result<OperatorDomain> {
        let (matrices, kind) = (self.matrices.clone(), CpuIsa::detect());
        let product = MatMul { matrices, rounded: Arc::default(), limits: limits.clone(), kind };
        let domain = OperatorDomain::new(DOMAIN)?.add(product)?;
        match self.cache {
            Some(format) => domain.add(Attention { format, limits: limits.clone(), kind }),
            None => Ok(domain),
        }
    }
}

/// `eka:MatMulInt4`: input `[.., depth]`, output `[.., columns]`, both float32.
struct MatMul {
    matrices: Vec<Arc<PackedInt4>>,
    /// Of the node that runs, kept from one to the next: nodes of a graph run one after the other, and each with its own
    /// would keep a third as much memory as the weights take.
    rounded: Arc<Mutex<Rounded>>,
    limits: ThreadLimits,
    kind: CpuIsa,
}

impl Operator for MatMul {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        MATMUL
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
        Ok(Box::new(Multiply {
            matrix: Arc::clone(matrix),
            rounded: Arc::clone(&self.rounded),
            limits: self.limits.clone(),
            kind: self.kind,
        }))
    }
}

/// One node.
struct Multiply {
    matrix: Arc<PackedInt4>,
    rounded: Arc<Mutex<Rounded>>,
    limits: ThreadLimits,
    kind: CpuIsa,
}

impl Kernel for Multiply {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (matrix, kind) = (&*self.matrix, self.kind);
        let input = context.input(0)?.ok_or_else(|| ort::Error::new("there is no input"))?;
        let (shape, input) = input.try_extract_tensor::<f32>()?;
        let depth = matrix.depth();
        if shape.last().is_none_or(|last| usize::try_from(*last) != Ok(depth)) {
            return Err(ort::Error::new(format!("an input of {shape:?} for a matrix of depth {depth}")));
        }
        let mut output_shape = shape.to_vec();
        if let Some(last) = output_shape.last_mut() {
            *last = i64::try_from(matrix.columns()).unwrap_or(i64::MAX);
        }
        let mut output = context
            .output(0, output_shape.as_slice())?
            .ok_or_else(|| ort::Error::new("there is no output"))?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let rows = input.len() / depth;
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
        let product = Product { matrix, rounded: &rounded, output: Parts::of(output) };
        let panels = matrix.panels();
        // More tasks than threads, so that a thread that has been interrupted does not make the others wait; the more the
        // longer a panel takes.
        let threads = self.limits.of(rows);
        let tasks = if threads == 1 { 1 } else { panels.min(threads * TASKS_PER_THREAD * rows) };
        let share = |task: usize| panels * task / tasks..panels * (task + 1) / tasks;
        if tasks == 1 {
            // SAFETY: one call, for all panels; the processor has these instructions.
            unsafe { product.panels(kind, 0..panels) };
            return Ok(());
        }
        // SAFETY: shares do not overlap; the processor has these instructions.
        context.par_for(tasks, self.limits.batches(rows), |task| unsafe { product.panels(kind, share(task)) })
    }
}

/// Into how many tasks a thread's share of a product is split, for each row.
const TASKS_PER_THREAD: usize = 4;
