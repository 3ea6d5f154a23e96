//! Vector instructions for any processor: plain loops, which the compiler may vectorise.

use half::f16;

use super::{
    packed_weights::BLOCK,
    simd_f32::{LANES, SimdF32},
    simd_i8::SimdI8,
};

/// Any processor: what the compiler makes of plain loops.
pub(super) struct Portable;

impl SimdI8 for Portable {
    type Codes = [u8; 64];
    type Sums = [i32; 16];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        // Of numbers without a sign, the greater one has the greater bits.
        input.iter().fold(0, |max, x| max.max(x.abs().to_bits()))
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
    unsafe fn floats(sums: [i32; 16], _: i32) -> [f32; 16] {
        sums.map(|sum| sum as f32)
    }
}

impl SimdF32 for Portable {
    type Floats = [f32; LANES];
    const SUMS: usize = 2;
    const TILE: [usize; 2] = [2, 1];

    #[inline(always)]
    unsafe fn splat(number: f32) -> [f32; LANES] {
        [number; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; LANES] {
        // SAFETY: the caller has sixteen there.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(floats: [f32; LANES], to: *mut f32) {
        // SAFETY: the caller has room for sixteen there.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn halfs(from: *const f16) -> [f32; LANES] {
        // SAFETY: the caller has sixteen there.
        let halfs = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        halfs.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> [f32; LANES] {
        // SAFETY: the caller has sixteen there.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        bytes.map(f32::from)
    }

    #[inline(always)]
    unsafe fn add(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        // In two steps: where one instruction does both, a compiler's call of a function for it would be far slower.
        each(each(a, b, |a, b| a * b), c, |product, c| product + c)
    }

    #[inline(always)]
    unsafe fn max(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(a: [f32; LANES]) -> [f32; LANES] {
        // Adding this to a number of fewer than 23 bits leaves it rounded in the low bits.
        const SHIFT: f32 = 12_582_912.0;
        a.map(|a| (a + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn shift(a: [f32; LANES], n: [f32; LANES]) -> [f32; LANES] {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from -126 to 127; of what is no number the product is none"
        )]
        each(a, n, |a, n| a * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn within(at: f32, first: [f32; LANES], end: [f32; LANES], a: [f32; LANES]) -> [f32; LANES] {
        let from_first = each(a, first, |a, first| if first <= at { a } else { f32::NEG_INFINITY });
        each(from_first, end, |a, end| if at < end { a } else { f32::NEG_INFINITY })
    }

    #[inline(always)]
    unsafe fn sum(a: [f32; LANES]) -> f32 {
        a.iter().sum()
    }

    #[inline(always)]
    unsafe fn splat_four(from: *const f32) -> [f32; LANES] {
        // SAFETY: the caller has four there.
        let four = unsafe { from.cast::<[f32; 4]>().read_unaligned() };
        std::array::from_fn(|i| four[i % 4])
    }

    #[inline(always)]
    unsafe fn four_fours(from: [*const f32; 4]) -> [f32; LANES] {
        // SAFETY: the caller has four in each place.
        let fours = from.map(|four| unsafe { four.cast::<[f32; 4]>().read_unaligned() });
        bytemuck::cast(fours)
    }

    #[inline(always)]
    unsafe fn sum_rows<const N: usize>(a: [[f32; LANES]; N]) -> [f32; LANES] {
        std::array::from_fn(|i| {
            let (row, at) = (a[i % N], i / N * 4 % LANES);
            (row[at] + row[at + 1]) + (row[at + 2] + row[at + 3])
        })
    }

    #[inline(always)]
    unsafe fn zero_below(a: [f32; LANES], x: [f32; LANES], least: f32) -> [f32; LANES] {
        each(a, x, |a, x| if x < least { 0.0 } else { a })
    }

    #[inline(always)]
    unsafe fn fetch(_: *const u8) {}
}

/// Element by element, in whatever instructions the compiler finds.
#[inline(always)]
fn each(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut result = a;
    for (result, b) in result.iter_mut().zip(b) {
        *result = f(*result, b);
    }
    result
}
