//! Processors with AVX2, and those with AVX-512.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one condition for all: that of the traits, and that of their pointers, which need no alignment"
)]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "as above")]

use std::arch::{asm, x86_64::*};

use half::f16;

use super::{packed_weights::BLOCK, simd_f32::SimdF32, simd_i8::SimdI8};

/// AVX-512 with VNNI: four bytes multiplied and added by one instruction, sixteen columns a register.
pub(super) struct Avx512;

impl SimdI8 for Avx512 {
    type Codes = __m512i;
    type Sums = __m512i;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        unsafe {
            let magnitude = |at: usize| {
                let bits = _mm512_loadu_si512(input.as_ptr().add(at).cast());
                _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX))
            };
            _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(0), magnitude(16)))
        }
    }

    #[inline(always)]
    unsafe fn rounded(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
        unsafe {
            let half = |at: usize| {
                let input = _mm512_loadu_ps(input.as_ptr().add(at));
                _mm512_cvtps_epi32(_mm512_mul_ps(input, _mm512_set1_ps(factor)))
            };
            let [low, high] = [half(0), half(16)];
            let mut fours = [0; BLOCK / 4];
            let to = fours.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(to, _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(to.add(1), _mm512_cvtepi32_epi8(high));
            (fours, _mm512_reduce_add_epi32(_mm512_add_epi32(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn halves(bytes: __m512i) -> [__m512i; 2] {
        unsafe {
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)]
        }
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, weights: __m512i, activations: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(activations)) }
    }

    #[inline(always)]
    unsafe fn floats(sums: __m512i, _: i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sums) }
    }
}

impl SimdF32 for Avx512 {
    type Floats = __m512;
    const SUMS: usize = 16;
    const TILE: [usize; 2] = [4, 4];

    #[inline(always)]
    unsafe fn splat(number: f32) -> __m512 {
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(floats: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, floats) }
    }

    #[inline(always)]
    unsafe fn halfs(from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn shift(a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    unsafe fn within(at: f32, first: __m512, end: __m512, a: __m512) -> __m512 {
        unsafe {
            let at = _mm512_set1_ps(at);
            let inside = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(first, at);
            let inside = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(inside, at, end);
            _mm512_mask_blend_ps(inside, _mm512_set1_ps(f32::NEG_INFINITY), a)
        }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    unsafe fn splat_four(from: *const f32) -> __m512 {
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn four_fours(from: [*const f32; 4]) -> __m512 {
        unsafe {
            let sums = _mm512_castps128_ps512(_mm_loadu_ps(from[0]));
            let sums = _mm512_insertf32x4::<1>(sums, _mm_loadu_ps(from[1]));
            let sums = _mm512_insertf32x4::<2>(sums, _mm_loadu_ps(from[2]));
            _mm512_insertf32x4::<3>(sums, _mm_loadu_ps(from[3]))
        }
    }

    #[inline(always)]
    unsafe fn sum_rows<const N: usize>(a: [__m512; N]) -> __m512 {
        unsafe {
            let pairs = |a, b| {
                let (even, odd) =
                    (_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b));
                _mm512_add_ps(even, odd)
            };
            // In each quarter the sum of its row of registers 0, 1 % N, 2 % N and 3 % N.
            let sums = pairs(pairs(a[0], a[1 % N]), pairs(a[2 % N], a[3 % N]));
            match N {
                4 => sums,
                2 => {
                    let first_two = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
                    _mm512_permutexvar_ps(first_two, sums)
                }
                _ => {
                    let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
                    _mm512_permutexvar_ps(first, sums)
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zero_below(a: __m512, x: __m512, least: f32) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(least)), a) }
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}

/// AVX2 with FMA and F16C: pairs of bytes, and sums of them in 16 bits. A weight is at most 15, so that all eight pairs of a
/// block have room there: 16 · 15 · 127 is 30,480.
pub(super) struct Avx2;

/// `sums` as they are. Else the compiler adds up in an order that needs all weights of a block at once, which have no room.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn settled(mut sums: __m256i) -> __m256i {
    unsafe {
        asm!("/* {sums} */", sums = inout(ymm_reg) sums, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

impl SimdI8 for Avx2 {
    type Codes = [__m256i; 2];
    type Sums = [__m256i; 2];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        unsafe {
            let magnitude = |at: usize| {
                let bits = _mm256_loadu_si256(input.as_ptr().add(at).cast());
                _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX))
            };
            let pair = |at: usize| _mm256_max_epu32(magnitude(at), magnitude(at + 8));
            let max = _mm256_max_epu32(pair(0), pair(16));
            let mut all = [0u32; 8];
            _mm256_storeu_si256(all.as_mut_ptr().cast(), max);
            all.into_iter().fold(0, u32::max)
        }
    }

    #[inline(always)]
    unsafe fn rounded(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
        unsafe {
            let eight = |at: usize| {
                let input = _mm256_loadu_ps(input.as_ptr().add(at));
                _mm256_cvtps_epi32(_mm256_mul_ps(input, _mm256_set1_ps(factor)))
            };
            let [a, b, c, d] = [eight(0), eight(8), eight(16), eight(24)];
            // Packing works within halves of a register: fours come out as a0 b0 c0 d0 a1 b1 c1 d1.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let mut fours = [0; BLOCK / 4];
            _mm256_storeu_si256(fours.as_mut_ptr().cast(), bytes);
            let mut sums = [0i32; 8];
            let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
            (fours, sums.into_iter().sum())
        }
    }

    #[inline(always)]
    unsafe fn codes(from: *const u8) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn halves([first, second]: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        unsafe {
            let low = _mm256_set1_epi8(15);
            let high = |bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
            [[_mm256_and_si256(first, low), _mm256_and_si256(second, low)], [high(first), high(second)]]
        }
    }

    #[inline(always)]
    unsafe fn sums(_: i32) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 2], weights: [__m256i; 2], activations: i32) -> [__m256i; 2] {
        unsafe {
            let activations = _mm256_set1_epi32(activations);
            let one =
                |sums, weights| settled(_mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, activations)));
            [one(sums[0], weights[0]), one(sums[1], weights[1])]
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: [__m256i; 2], start: i32) -> [__m256; 2] {
        unsafe {
            let one = |at: usize| {
                let sums = _mm256_madd_epi16(sums[at], _mm256_set1_epi16(1));
                _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(start)))
            };
            [one(0), one(1)]
        }
    }

    #[inline(always)]
    unsafe fn byte_codes(from: *const u8) -> [__m256i; 2] {
        unsafe {
            let [first, second] = Self::codes(from);
            let middle = _mm256_set1_epi8(i8::MIN);
            [_mm256_xor_si256(first, middle), _mm256_xor_si256(second, middle)]
        }
    }

    #[inline(always)]
    unsafe fn byte_sums(_: i32) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn byte_dot(sums: [__m256i; 2], weights: [__m256i; 2], activations: i32) -> [__m256i; 2] {
        unsafe {
            let activations = _mm256_set1_epi32(activations);
            // The instruction multiplies magnitudes with signed bytes; two products of at most 128 · 127 fit into 16 bits.
            let one = |sums, weights| {
                let signed = _mm256_sign_epi8(activations, weights);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                settled(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
            };
            [one(sums[0], weights[0]), one(sums[1], weights[1])]
        }
    }

    #[inline(always)]
    unsafe fn byte_floats(sums: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
    }
}

impl SimdF32 for Avx2 {
    type Floats = [__m256; 2];
    const SUMS: usize = 4;
    const TILE: [usize; 2] = [2, 2];

    #[inline(always)]
    unsafe fn splat(number: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(number); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(floats: [__m256; 2], to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, floats[0]);
            _mm256_storeu_ps(to.add(8), floats[1]);
        }
    }

    #[inline(always)]
    unsafe fn halfs(from: *const f16) -> [__m256; 2] {
        unsafe {
            let half = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(from.add(at).cast()));
            [half(0), half(8)]
        }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const i8) -> [__m256; 2] {
        unsafe {
            let half =
                |at: usize| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(at).cast())));
            [half(0), half(8)]
        }
    }

    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn min(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn round(a: [__m256; 2]) -> [__m256; 2] {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }

    #[inline(always)]
    unsafe fn shift(a: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
        unsafe {
            let one = |a, n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            };
            [one(a[0], n[0]), one(a[1], n[1])]
        }
    }

    #[inline(always)]
    unsafe fn within(at: f32, first: [__m256; 2], end: [__m256; 2], a: [__m256; 2]) -> [__m256; 2] {
        unsafe {
            let at = _mm256_set1_ps(at);
            let one = |i: usize| {
                let from_first = _mm256_cmp_ps::<_CMP_LE_OQ>(first[i], at);
                let inside = _mm256_and_ps(from_first, _mm256_cmp_ps::<_CMP_LT_OQ>(at, end[i]));
                _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), a[i], inside)
            };
            [one(0), one(1)]
        }
    }

    #[inline(always)]
    unsafe fn sum(a: [__m256; 2]) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn splat_four(from: *const f32) -> [__m256; 2] {
        unsafe {
            let four = _mm_loadu_ps(from);
            [_mm256_set_m128(four, four); 2]
        }
    }

    #[inline(always)]
    unsafe fn four_fours(from: [*const f32; 4]) -> [__m256; 2] {
        unsafe {
            let two = |low, high| _mm256_set_m128(_mm_loadu_ps(high), _mm_loadu_ps(low));
            [two(from[0], from[1]), two(from[2], from[3])]
        }
    }

    #[inline(always)]
    unsafe fn sum_rows<const N: usize>(a: [[__m256; 2]; N]) -> [__m256; 2] {
        unsafe {
            // In each quarter the sum of its row of registers 0, 1 % N, 2 % N and 3 % N.
            let sums = |half: usize| {
                let first = _mm256_hadd_ps(a[0][half], a[1 % N][half]);
                _mm256_hadd_ps(first, _mm256_hadd_ps(a[2 % N][half], a[3 % N][half]))
            };
            let (low, high) = (sums(0), sums(1));
            match N {
                4 => [low, high],
                2 => {
                    let first_two = _mm256_setr_epi32(0, 1, 4, 5, 0, 1, 4, 5);
                    let four = |half| _mm256_permutevar8x32_ps(half, first_two);
                    [_mm256_permute2f128_ps::<0x20>(four(low), four(high)); 2]
                }
                _ => {
                    let first = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
                    let two = |half| _mm256_castps_pd(_mm256_permutevar8x32_ps(half, first));
                    [_mm256_castpd_ps(_mm256_unpacklo_pd(two(low), two(high))); 2]
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zero_below(a: [__m256; 2], x: [__m256; 2], least: f32) -> [__m256; 2] {
        unsafe {
            let one = |a, x| _mm256_and_ps(a, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(least)));
            [one(a[0], x[0]), one(a[1], x[1])]
        }
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
