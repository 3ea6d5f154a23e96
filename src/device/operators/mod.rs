//! eka's operators for CPUs, for nodes that ONNX Runtime computes more slowly.
//!
//! - [`PackedWeights`]: int4 or int8 weights, laid out for products: 4.5 or 8.5 bits each, float16 scales beside them.
//! - `eka:MatMulInt4`, `eka:MatMulInt8`: what `com.microsoft:MatMulNBits` computes at accuracy level 4, over such a matrix.
//! - `eka:MatMulFloat32`, `eka:MatMulFloat16`: what `com.microsoft:FusedMatMul` computes, over float weights as they are in
//!   the file.
//! - `eka:MoE`, `eka:MoEFloat32`, `eka:MoEFloat16`: the experts that the tokens of a sparse MLP choose.
//! - [`LowRank`]: what a LoRA adapter adds to a product, for the adapters of a run.
//! - `eka:Attention`: what `com.microsoft:GroupQueryAttention` computes, over a cache in half the bytes or less.
//!
//! # Results do not depend on batching
//! Every operator computes a row to the same bits in a pass of one row and of many, and on any number of threads: sums have a
//! fixed order, and rounding depends on the row alone. So prefill chunks, cached prefixes, drafts and a resumed answer do not
//! change a logit. Different instruction sets, and GPUs, add in different orders.
//!
//! # The parts of a step
//! TinyLlama-1.1B's shape in int4 on two threads of a shared AMD EPYC (Zen 4), medians in milliseconds: a decode step without
//! context and after 1,536 tokens, measured with ONNX Runtime's profiler, and prefill of 512 tokens without context, measured with a
//! sampling profiler (norms and SwiGLU with ONNX Runtime's):
//!
//! | operator | nodes | decode | after 1,536 | prefill |
//! |---|---|---|---|---|
//! | `eka:MatMulInt4` | 111 | 28.1 | 28.9 | 1,390 |
//! | `eka:Attention` | 22 | 0.55 | 7.5 | 130 |
//! | `SkipSimplifiedLayerNormalization` | 44 | 0.49 | 0.51 | 40 |
//! | `QuickGelu` and `Mul`, which are SwiGLU | 44 | 0.37 | 0.40 | 50 |
//! | all others | 4 | 0.04 | 0.04 | 50 |
//!
//! Norms take 1.7 % of a step, and SwiGLU 1.3 % (2.4 and 3.0 % of prefill). Fusing either with the rounding of activations would
//! save only a part of that, so eka has no such operators. With ONNX Runtime's attention a token after 1,536 others takes 10 to
//! 11 ms more than the first; with `eka:Attention` it is now 5 to 6 ms, because the query heads of a token are computed in pairs
//! of lanes (the table is older).
//!
//! ONNX Runtime calls these operators on its threads, like its own. [`model`](crate::model) decides which nodes of a
//! graph they replace; a directory under `models/` does not refer to them, and loads without them.

mod attention;
mod cpu_isa;
mod float_product;
mod huge_pages;
mod low_rank;
mod low_rank_product;
#[cfg(test)]
mod low_rank_tests;
mod matmul;
mod moe;
mod names;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed_file;
mod packed_weights;
mod parts;
mod portable;
mod quantized_product;
mod simd_f32;
mod simd_i8;
mod tensors;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use ort::operator::OperatorDomain;

use super::threads::ThreadLimits;
use attention::Attention;
pub use attention::{ATTENTION, CacheSegment, Format, MAX_SEGMENTS, PassSequence};
pub use cpu_isa::CpuIsa;
pub use huge_pages::PackedStorage;
pub use low_rank::{
    AdapterSlot, AdapterWeights, ColumnLengths, ColumnTerms, Floats, InputTerms, LowRank, LowRankError,
    LowRankPair,
};
use matmul::{FloatMatMul, QuantizedMatMul};
pub use moe::{MOE, MOE_FLOAT16, MOE_FLOAT32, MOE_NUMBERS, Mixture, Routing, Scores, SwiGlu};
use moe::{MixtureOfExperts, SharedScratch, WeightType};
pub use names::{DOMAIN, MATMUL_FLOAT16, MATMUL_FLOAT32, MATMUL_INT4, MATMUL_INT8, MATRIX, MIXTURE, PRODUCT};
pub use packed_file::PackedFile;
pub use packed_weights::{PackedShape, PackedWeights, QuantizedBlocks, WeightBits};

/// What the operators of a graph work with.
#[derive(Default)]
pub struct Operators {
    matrices: Vec<Arc<PackedWeights>>,
    has_float_products: bool,
    mixtures: Vec<Arc<Mixture>>,
    cache: Option<Format>,
    /// Names of the products, with their columns and depth.
    products: Vec<(String, [usize; 2])>,
    adapters: OnceLock<AdapterSlot>,
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators")
            .field("matrices", &self.matrices.len())
            .field("has_float_products", &self.has_float_products)
            .field("mixtures", &self.mixtures.len())
            .field("cache", &self.cache)
            .finish()
    }
}

impl Operators {
    /// Adds a matrix; its number.
    pub fn add(&mut self, matrix: Arc<PackedWeights>) -> usize {
        self.matrices.push(matrix);
        self.matrices.len() - 1
    }

    /// Adds products with float weights, which are inputs of their nodes.
    pub fn add_float_products(&mut self) {
        self.has_float_products = true;
    }

    /// Names a product of `[columns, depth]`; its number.
    pub fn name_product(&mut self, name: String, shape: [usize; 2]) -> usize {
        self.products.push((name, shape));
        self.products.len() - 1
    }

    /// The place for adapters that change the named products. No product may be named after this.
    #[must_use]
    pub fn adapter_slot(&self) -> AdapterSlot {
        self.adapters.get_or_init(|| AdapterSlot::new(self.products.clone())).clone()
    }

    /// Adds a sparse MLP; its number.
    pub fn add_mixture(&mut self, mixture: Mixture) -> usize {
        self.mixtures.push(Arc::new(mixture));
        self.mixtures.len() - 1
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
        !self.matrices.is_empty() || !self.mixtures.is_empty() || self.has_float_products
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.multiplies() && self.cache.is_none()
    }

    /// As ONNX Runtime wants them, for a session with the threads of `limits`.
    pub(super) fn domain(&self, limits: &ThreadLimits) -> ort::Result<OperatorDomain> {
        let (kind, rounded) = (CpuIsa::detect(), Arc::default());
        let quantized = |name| QuantizedMatMul {
            name,
            matrices: self.matrices.clone(),
            rounded: Arc::clone(&rounded),
            limits: limits.clone(),
            kind,
            adapters: self.adapter_slot(),
        };
        let float =
            |is_half| FloatMatMul { is_half, limits: limits.clone(), kind, adapters: self.adapter_slot() };
        let experts = SharedScratch::default();
        let mixture = |weights| MixtureOfExperts {
            weights,
            mixtures: self.mixtures.clone(),
            scratch: experts.clone(),
            limits: limits.clone(),
            kind,
        };
        let domain = OperatorDomain::new(DOMAIN)?
            .add(mixture(WeightType::Packed))?
            .add(mixture(WeightType::Float32))?
            .add(mixture(WeightType::Float16))?
            .add(quantized(MATMUL_INT4))?
            .add(quantized(MATMUL_INT8))?
            .add(float(false))?
            .add(float(true))?;
        match self.cache {
            Some(format) => domain.add(Attention { format, limits: limits.clone(), kind }),
            None => Ok(domain),
        }
    }
}
