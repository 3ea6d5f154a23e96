//! The few vector instructions that a product needs, for each kind of processor.
//!
//! Sixteen columns of a matrix are computed side by side. What differs between processors is how wide a register is and
//! whether one instruction multiplies and adds four bytes; [`gemm_int4`](super::gemm_int4) is written once over this.

use super::{packed_int4::BLOCK, simd_f32::SimdF32};

/// Rows of activations that one pass over the weights serves at most, on any processor.
pub(super) const MAX_ROWS: usize = 6;

/// Sixteen columns at once.
///
/// # Safety
/// Every method needs the instructions that its implementor is named after.
pub(super) trait SimdI8: SimdF32 {
    /// 64 weights: four consecutive ones of each column.
    type Codes: Copy;
    /// The sum of a block's products, for each column.
    type Sums: Copy;
    /// Rows whose sums, for twice sixteen columns, stay in registers.
    const ROWS: usize;

    /// The bits of the greatest magnitude; those of infinity or more where one is not finite.
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32;
    /// `input · factor` rounded to the nearest whole numbers, four int8 in each, and their sum; none beyond ±127.
    unsafe fn rounded(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32);
    /// Reads 64 bytes.
    unsafe fn codes(from: *const u8) -> Self::Codes;
    /// The low and the high half of each byte.
    unsafe fn halves(bytes: Self::Codes) -> [Self::Codes; 2];
    /// The sums of a block that start with `start`, or with nothing where it is [added at the end](Self::add_scaled).
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the product of four activations, int8, with each column's four weights, none above 15.
    unsafe fn dot(sums: Self::Sums, weights: Self::Codes, activations: i32) -> Self::Sums;
    /// `total + sums · scales`, column by column; `start` is what the sums were to start with.
    unsafe fn add_scaled(
        total: Self::Floats,
        sums: Self::Sums,
        start: i32,
        scales: Self::Floats,
    ) -> Self::Floats;
}
