//! Kernels for 64-bit ARM, which always has NEON.
//!
//! Tested in an emulator; the speed on real hardware has not been measured.
//!
//! Instructions without a stable intrinsic in Rust are inline assembly: the dot product of bytes, and the conversion of float16 to
//! float32, which every such processor has.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one condition for all: that of the traits, and that of their pointers, which need no alignment"
)]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "as above")]

use std::{
    arch::{aarch64::*, asm},
    array,
};

use half::f16;

use super::{
    packed_weights::BLOCK,
    simd_f32::{LANES, SimdF32},
    simd_i8::SimdI8,
};

/// NEON; with `DOT`, one instruction multiplies and adds four bytes.
pub(super) struct Neon<const DOT: bool>;

/// Numbers in a register.
const FOUR: usize = 4;

/// Sixteen float32.
type Floats = [float32x4_t; LANES / FOUR];

/// Computes each register by its index.
#[inline(always)]
fn each(f: impl Fn(usize) -> float32x4_t) -> Floats {
    array::from_fn(f)
}

/// Adds to each of `sums` the product of four weights with four activations, the same for all.
#[inline]
#[target_feature(enable = "dotprod")]
unsafe fn dot(mut sums: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
    unsafe {
        // As signed bytes, because codes of weights are at most 15.
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {activations:v}.16b",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            activations = in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Like [`dot`], without its instruction: adds pairs of products first, which do not overflow (2 · 128 · 127 fits into 16 bits).
#[inline(always)]
unsafe fn dot_by_pairs(sums: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
    unsafe {
        let weights = vreinterpretq_s8_u8(weights);
        let low = vmull_s8(vget_low_s8(weights), vget_low_s8(activations));
        vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(weights, activations)))
    }
}

impl<const DOT: bool> SimdI8 for Neon<DOT> {
    type Codes = [uint8x16_t; 4];
    type Sums = [int32x4_t; 4];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        unsafe {
            let magnitude = |at: usize| vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(input.as_ptr().add(at))));
            let rest = (FOUR..BLOCK).step_by(FOUR);
            vmaxvq_u32(rest.fold(magnitude(0), |max, at| vmaxq_u32(max, magnitude(at))))
        }
    }

    #[inline(always)]
    unsafe fn rounded(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
        let mut fours = [0; BLOCK / 4];
        let mut sum = 0;
        for (input, fours) in input.as_chunks::<LANES>().0.iter().zip(fours.as_chunks_mut::<FOUR>().0) {
            unsafe {
                let four = |at: usize| vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(input.as_ptr().add(at)), factor));
                let [a, b, c, d] = [four(0), four(4), four(8), four(12)];
                sum += vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
                let narrow = |a, b| vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
                vst1q_s32(fours.as_mut_ptr(), vreinterpretq_s32_s8(vcombine_s8(narrow(a, b), narrow(c, d))));
            }
        }
        (fours, sum)
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> [uint8x16_t; 4] {
        array::from_fn(|i| unsafe { vld1q_u8(from.add(16 * i)) })
    }

    #[inline(always)]
    unsafe fn halves(bytes: [uint8x16_t; 4]) -> [[uint8x16_t; 4]; 2] {
        unsafe {
            [bytes.map(|bytes| vandq_u8(bytes, vdupq_n_u8(15))), bytes.map(|bytes| vshrq_n_u8::<4>(bytes))]
        }
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> [int32x4_t; 4] {
        unsafe { [vdupq_n_s32(start); 4] }
    }

    #[inline(always)]
    unsafe fn dot(sums: [int32x4_t; 4], weights: [uint8x16_t; 4], activations: i32) -> [int32x4_t; 4] {
        unsafe {
            let activations = vreinterpretq_s8_s32(vdupq_n_s32(activations));
            let ([a, b, c, d], [v, w, x, y]) = (sums, weights);
            // No closure, which would not be compiled with the instruction.
            if DOT {
                [
                    dot(a, v, activations),
                    dot(b, w, activations),
                    dot(c, x, activations),
                    dot(d, y, activations),
                ]
            } else {
                [
                    dot_by_pairs(a, v, activations),
                    dot_by_pairs(b, w, activations),
                    dot_by_pairs(c, x, activations),
                    dot_by_pairs(d, y, activations),
                ]
            }
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: [int32x4_t; 4], _: i32) -> Floats {
        each(|i| unsafe { vcvtq_f32_s32(sums[i]) })
    }

    #[inline(always)]
    unsafe fn byte_codes(from: *const u8) -> [uint8x16_t; 4] {
        unsafe { Self::codes(from).map(|codes| veorq_u8(codes, vdupq_n_u8(128))) }
    }

    #[inline(always)]
    unsafe fn byte_sums(_: i32) -> [int32x4_t; 4] {
        unsafe { [vdupq_n_s32(0); 4] }
    }
}

impl<const DOT: bool> SimdF32 for Neon<DOT> {
    type Floats = Floats;
    const SUMS: usize = 4;
    const TILE: [usize; 2] = [2, 2];

    #[inline(always)]
    unsafe fn splat(number: f32) -> Floats {
        unsafe { [vdupq_n_f32(number); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Floats {
        each(|i| unsafe { vld1q_f32(from.add(FOUR * i)) })
    }

    #[inline(always)]
    unsafe fn store(floats: Floats, to: *mut f32) {
        for (i, floats) in floats.into_iter().enumerate() {
            unsafe { vst1q_f32(to.add(FOUR * i), floats) }
        }
    }

    #[inline(always)]
    unsafe fn halfs(from: *const f16) -> Floats {
        let eight = |at: usize| {
            let (low, high): (float32x4_t, float32x4_t);
            unsafe {
                let halfs = vld1q_u16(from.add(at).cast());
                asm!(
                    "fcvtl {low:v}.4s, {halfs:v}.4h",
                    "fcvtl2 {high:v}.4s, {halfs:v}.8h",
                    halfs = in(vreg) halfs,
                    low = out(vreg) low,
                    high = lateout(vreg) high,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            [low, high]
        };
        let [[a, b], [c, d]] = [eight(0), eight(8)];
        [a, b, c, d]
    }

    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> Floats {
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let fours = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            fours.map(|four| vcvtq_f32_s32(four))
        }
    }

    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        each(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        each(|i| unsafe { vsubq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        each(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        each(|i| unsafe { vdivq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        each(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        // The instruction returns NaN if either operand is NaN.
        each(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        each(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn round(a: Floats) -> Floats {
        each(|i| unsafe { vrndnq_f32(a[i]) })
    }

    #[inline(always)]
    unsafe fn shift(a: Floats, n: Floats) -> Floats {
        each(|i| unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
            vmulq_f32(a[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }

    #[inline(always)]
    unsafe fn within(at: f32, first: Floats, end: Floats, a: Floats) -> Floats {
        each(|i| unsafe {
            let at = vdupq_n_f32(at);
            let inside = vandq_u32(vcleq_f32(first[i], at), vcltq_f32(at, end[i]));
            vbslq_f32(inside, a[i], vdupq_n_f32(f32::NEG_INFINITY))
        })
    }

    #[inline(always)]
    unsafe fn sum(a: Floats) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    unsafe fn splat_four(from: *const f32) -> Floats {
        unsafe { [vld1q_f32(from); 4] }
    }

    #[inline(always)]
    unsafe fn four_fours(from: [*const f32; 4]) -> Floats {
        each(|i| unsafe { vld1q_f32(from[i]) })
    }

    #[inline(always)]
    unsafe fn sum_rows<const N: usize>(a: [Floats; N]) -> Floats {
        unsafe {
            // In each quarter the sum of its row of registers 0, 1 % N, 2 % N and 3 % N.
            let sums = each(|i| {
                let first = vpaddq_f32(a[0][i], a[1 % N][i]);
                vpaddq_f32(first, vpaddq_f32(a[2 % N][i], a[3 % N][i]))
            });
            let low = |a, b| vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            match N {
                4 => sums,
                2 => {
                    let (first, second) = (low(sums[0], sums[1]), low(sums[2], sums[3]));
                    [first, second, first, second]
                }
                _ => {
                    let (first, second) = (vzip1q_f32(sums[0], sums[1]), vzip1q_f32(sums[2], sums[3]));
                    [low(first, second); 4]
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zero_below(a: Floats, x: Floats, least: f32) -> Floats {
        each(|i| unsafe {
            let below = vcltq_f32(x[i], vdupq_n_f32(least));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a[i]), below))
        })
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        unsafe {
            asm!("prfm pldl1keep, [{from}]", from = in(reg) from, options(nostack, preserves_flags, readonly));
        }
    }
}
