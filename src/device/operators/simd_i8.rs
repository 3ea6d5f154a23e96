//! The few vector instructions that a product needs, for each kind of processor.
//!
//! Sixteen columns of a matrix are computed side by side. What differs between processors is how wide a register is and
//! whether one instruction multiplies and adds four bytes; [`product`](super::gemm_int4) is written once over this.

use super::{packed_int4::BLOCK, simd_f32::SimdF32};

/// Rows of activations that one pass over the weights serves at most, on any processor.
pub(super) const MOST_ROWS: usize = 6;

/// Sixteen columns at once.
///
/// # Safety
/// Every method needs the instructions that its implementor is named after.
pub(super) trait SimdI8: SimdF32 {
    /// 64 weights: four consecutive ones of each column.
    type Codes: Copy;
    /// What a column's products of a block add up to.
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

/// Any processor: what the compiler makes of plain loops.
pub(super) struct Portable;

impl SimdI8 for Portable {
    type Codes = [u8; 64];
    type Sums = [i32; 16];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        // Of numbers without a sign, the greater one has the greater bits.
        input.iter().fold(0, |most, x| most.max(x.abs().to_bits()))
    }

    #[inline(always)]
    unsafe fn rounded(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
        // Adding this to a number of fewer than 23 bits leaves it rounded in the low bits.
        const SHIFT: f32 = 12_582_912.0;
        let mut sum = 0;
        let mut byte = |x: f32| {
            let rounded = (x * factor + SHIFT).to_bits().cast_signed() - SHIFT.to_bits().cast_signed();
            sum += rounded;
            rounded.to_le_bytes()[0]
        };
        let fours: [[f32; 4]; BLOCK / 4] = bytemuck::cast(*input);
        let fours = fours.map(|four| i32::from_le_bytes(four.map(&mut byte)));
        (fours, sum)
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> [u8; 64] {
        // SAFETY: the caller has 64 bytes there; an array of bytes needs no alignment.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn halves(bytes: [u8; 64]) -> [[u8; 64]; 2] {
        [bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> [i32; 16] {
        [start; 16]
    }

    #[inline(always)]
    unsafe fn dot(mut sums: [i32; 16], weights: [u8; 64], activations: i32) -> [i32; 16] {
        let activations = activations.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
            for (weight, activation) in weights.iter().zip(activations) {
                *sum += i32::from(*weight) * activation;
            }
        }
        sums
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "sums of a block are far below 2^24")]
    unsafe fn add_scaled(mut total: [f32; 16], sums: [i32; 16], _: i32, scales: [f32; 16]) -> [f32; 16] {
        for ((total, sum), scale) in total.iter_mut().zip(sums).zip(scales) {
            *total += sum as f32 * scale;
        }
        total
    }
}
