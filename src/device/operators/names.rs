//! Names of eka's operators and of their attributes.

/// The domain of our operators.
pub const DOMAIN: &str = "eka";

/// The operator that multiplies by [`PackedWeights`](super::PackedWeights) of four bits.
pub const MATMUL_INT4: &str = "MatMulInt4";

/// The operator that multiplies by [`PackedWeights`](super::PackedWeights) of eight bits.
pub const MATMUL_INT8: &str = "MatMulInt8";

/// The operator that multiplies by float32 weights, its second input: `[columns, depth]`.
pub const MATMUL_FLOAT32: &str = "MatMulFloat32";

/// The operator that multiplies by float16 weights, its second input: `[columns, depth]`.
pub const MATMUL_FLOAT16: &str = "MatMulFloat16";

/// The attribute of [`MATMUL_INT4`] and [`MATMUL_INT8`] with the index of their matrix.
pub const MATRIX: &str = "matrix";

/// The attribute of every product with its number, by which [adapters](super::AdapterSlot) find it.
pub const PRODUCT: &str = "product";

/// The attribute of an operator for sparse MLPs with the index of their [`Mixture`](super::Mixture).
pub const MIXTURE: &str = "mixture";
