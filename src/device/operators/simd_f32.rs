//! Vectors of sixteen float32, with one implementation for each instruction set.
//!
//! [`attention`](super::attention) is generic over this trait, as [`quantized_product`](super::quantized_product) is over
//! [`SimdI8`](super::simd_i8::SimdI8).

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use half::f16;

/// How many numbers a [`SimdF32`] computes with at once.
pub(super) const LANES: usize = 16;

/// Sixteen float32.
///
/// # Safety
/// Every method needs the instructions that its implementor is named after, and pointers to as many numbers as it documents.
pub(super) trait SimdF32 {
    /// Sixteen float32.
    type Floats: Copy;
    /// Number of vectors of sums that fit into the registers, with a few left for operands.
    const SUMS: usize;
    /// Rows and columns of a tile of sums that fits into the registers, with room for one row and one column of operands.
    const TILE: [usize; 2];

    /// The same number sixteen times.
    unsafe fn splat(number: f32) -> Self::Floats;
    /// Reads sixteen.
    unsafe fn load(from: *const f32) -> Self::Floats;
    /// Writes sixteen.
    unsafe fn store(floats: Self::Floats, to: *mut f32);
    /// Reads sixteen float16.
    unsafe fn halfs(from: *const f16) -> Self::Floats;
    /// Reads sixteen int8.
    unsafe fn bytes(from: *const i8) -> Self::Floats;
    /// `a + b`.
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a - b`.
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a / b`.
    unsafe fn div(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The greater; `b` where one is NaN.
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The lesser; `b` where one is NaN.
    unsafe fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Rounded to the nearest whole number; for magnitudes below 2^22.
    unsafe fn round(a: Self::Floats) -> Self::Floats;
    /// `a · 2^n` for whole `n` from -126 to 127.
    unsafe fn shift(a: Self::Floats, n: Self::Floats) -> Self::Floats;
    /// `a` where `first <= at < end`, else negative infinity.
    unsafe fn within(at: f32, first: Self::Floats, end: Self::Floats, a: Self::Floats) -> Self::Floats;
    /// The sum of all sixteen.
    unsafe fn sum(a: Self::Floats) -> f32;
    /// The same four numbers four times.
    unsafe fn splat_four(from: *const f32) -> Self::Floats;
    /// Four numbers from each of four places.
    unsafe fn four_fours(from: [*const f32; 4]) -> Self::Floats;
    /// The sums of `4 · N` rows of four numbers, `N` being 1, 2 or 4: row `i` is in quarter `i / N` of register `i % N`, and
    /// its sum, `(0 + 1) + (2 + 3)`, in lane `i`. Other lanes are unspecified, but NaN only if `a` contains NaN.
    unsafe fn sum_rows<const N: usize>(a: [Self::Floats; N]) -> Self::Floats;
    /// `a`, or zero where `x < least`.
    unsafe fn zero_below(a: Self::Floats, x: Self::Floats, least: f32) -> Self::Floats;
    /// Prefetches memory that will be read soon.
    unsafe fn fetch(from: *const u8);
}

/// `e^x` for `x` of zero or less, for softmax; zero below -87. NaN stays NaN.
///
/// A hidden position has the score -∞ and must weigh exactly nothing: which positions are hidden in a block depends on the
/// rows that are computed together.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn exp<V: SimdF32>(x: V::Floats) -> V::Floats {
    // Cephes' polynomial, to 2 units in the last place.
    const TERMS: [f32; 6] = [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    const MIN: f32 = -87.0;
    // SAFETY: as the caller promises.
    unsafe {
        let given = x;
        let x = V::max(V::splat(MIN), x);
        let n = V::round(V::mul(x, V::splat(std::f32::consts::LOG2_E)));
        let rest = V::fma(n, V::splat(-0.693_359_4), x);
        let rest = V::fma(n, V::splat(2.121_944_4e-4), rest);
        let mut sum = V::splat(TERMS[0]);
        for term in &TERMS[1..] {
            sum = V::fma(sum, rest, V::splat(*term));
        }
        let sum = V::fma(sum, V::mul(rest, rest), V::add(rest, V::splat(1.0)));
        V::zero_below(V::shift(sum, n), given, MIN)
    }
}

/// The hyperbolic tangent.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn tanh<V: SimdF32>(x: V::Floats) -> V::Floats {
    // Eigen's rational function, exact to a few units in the last place; beyond the limit it is 1.
    const LIMIT: f32 = 7.905_311;
    const ABOVE: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_525e-3,
    ];
    const BELOW: [f32; 4] = [1.198_258_4e-6, 1.185_347e-4, 2.268_434_6e-3, 4.893_525_3e-3];
    // SAFETY: as the caller promises.
    unsafe {
        let x = V::min(V::splat(LIMIT), V::max(V::splat(-LIMIT), x));
        let square = V::mul(x, x);
        let polynomial = |terms: &[f32]| {
            let sum = V::splat(terms[0]);
            terms[1..].iter().fold(sum, |sum, term| V::fma(sum, square, V::splat(*term)))
        };
        V::div(V::mul(polynomial(&ABOVE), x), polynomial(&BELOW))
    }
}
