//! The few vector instructions that a product needs, for each kind of processor.
//!
//! Sixteen columns of a matrix are computed side by side. What differs between processors is how wide a register is and
//! whether one instruction multiplies and adds four bytes; [`quantized_product`](super::quantized_product) is written once over this.

use super::{packed_weights::BLOCK, simd_f32::SimdF32};

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
    /// The sums of a block that start with `start`, or with nothing where it is [added at the end](Self::floats).
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the product of four activations, int8, with each column's four weights, none above 15.
    unsafe fn dot(sums: Self::Sums, weights: Self::Codes, activations: i32) -> Self::Sums;
    /// As float32; `start` is what the sums were to start with.
    unsafe fn floats(sums: Self::Sums, start: i32) -> Self::Floats;

    /// Reads 64 weights of a byte each, for [`byte_dot`](Self::byte_dot).
    #[inline(always)]
    unsafe fn byte_codes(from: *const u8) -> Self::Codes {
        // SAFETY: as the caller promises.
        unsafe { Self::codes(from) }
    }
    /// The sums of a block that start with `start`, or with nothing where [`byte_codes`](Self::byte_codes) has taken the
    /// middle from the codes.
    #[inline(always)]
    unsafe fn byte_sums(start: i32) -> Self::Sums {
        // SAFETY: as the caller promises.
        unsafe { Self::sums(start) }
    }
    /// As [`dot`](Self::dot), of weights of a byte each.
    #[inline(always)]
    unsafe fn byte_dot(sums: Self::Sums, weights: Self::Codes, activations: i32) -> Self::Sums {
        // SAFETY: as the caller promises.
        unsafe { Self::dot(sums, weights, activations) }
    }
    /// As float32.
    #[inline(always)]
    unsafe fn byte_floats(sums: Self::Sums) -> Self::Floats {
        // SAFETY: as the caller promises.
        unsafe { Self::floats(sums, 0) }
    }
}
