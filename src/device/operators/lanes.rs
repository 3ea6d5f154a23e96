//! The few vector instructions that a product needs, for each kind of processor.
//!
//! Sixteen columns of a matrix are computed side by side. What differs between processors is how wide a register is and
//! whether one instruction multiplies and adds four bytes; [`product`](super::product) is written once over this.

use super::matrix::BLOCK;

/// Rows of activations that one pass over the weights serves at most, on any processor.
pub(super) const MOST_ROWS: usize = 6;

/// Sixteen columns at once.
///
/// # Safety
/// Every method needs the instructions that its implementor is named after.
pub(super) trait Lanes {
    /// 64 weights: four consecutive ones of each column.
    type Bytes: Copy;
    /// An int32 a column.
    type Sums: Copy;
    /// A float32 a column.
    type Floats: Copy;
    /// Rows whose sums, for twice sixteen columns, stay in registers.
    const ROWS: usize;

    /// The bits of the greatest magnitude; those of infinity or more where one is not finite.
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32;
    /// `input · factor` rounded to the nearest whole numbers, four int8 in each, and their sum; none beyond ±127.
    unsafe fn round(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32);
    /// Reads 64 bytes.
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// The low and the high half of each byte.
    unsafe fn halves(bytes: Self::Bytes) -> [Self::Bytes; 2];
    /// Writes 64 bytes.
    unsafe fn put_bytes(bytes: Self::Bytes, to: *mut u8);
    /// The same number for every column.
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the product of four activations, int8, with each column's four weights, none above 15.
    unsafe fn dot(sums: Self::Sums, weights: Self::Bytes, activations: i32) -> Self::Sums;
    /// Zeros.
    unsafe fn zeros() -> Self::Floats;
    /// Reads sixteen float16.
    unsafe fn halfs(from: *const half::f16) -> Self::Floats;
    /// Reads sixteen float32.
    unsafe fn floats(from: *const f32) -> Self::Floats;
    /// Each of `floats` times `factor`.
    unsafe fn times(floats: Self::Floats, factor: f32) -> Self::Floats;
    /// `total + sums · scales`, column by column.
    unsafe fn add(total: Self::Floats, sums: Self::Sums, scales: Self::Floats) -> Self::Floats;
    /// Writes sixteen floats.
    unsafe fn put(floats: Self::Floats, to: *mut f32);
    /// Asks for what will be read soon.
    unsafe fn fetch(from: *const u8);
}

/// Any processor: what the compiler makes of plain loops.
pub(super) struct Portable;

impl Lanes for Portable {
    type Bytes = [u8; 64];
    type Sums = [i32; 16];
    type Floats = [f32; 16];
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
        // Of numbers without a sign, the greater one has the greater bits.
        input.iter().fold(0, |most, x| most.max(x.abs().to_bits()))
    }

    #[inline(always)]
    unsafe fn round(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
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
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        // SAFETY: the caller has 64 bytes there; an array of bytes needs no alignment.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn halves(bytes: [u8; 64]) -> [[u8; 64]; 2] {
        [bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    unsafe fn put_bytes(bytes: [u8; 64], to: *mut u8) {
        // SAFETY: the caller has room for 64 bytes there.
        unsafe { to.cast::<[u8; 64]>().write(bytes) }
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
    unsafe fn zeros() -> [f32; 16] {
        [0.0; 16]
    }

    #[inline(always)]
    unsafe fn halfs(from: *const half::f16) -> [f32; 16] {
        // SAFETY: the caller has sixteen there.
        let halfs: [half::f16; 16] = unsafe { from.cast::<[half::f16; 16]>().read_unaligned() };
        halfs.map(half::f16::to_f32)
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [f32; 16] {
        // SAFETY: the caller has sixteen there.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn times(floats: [f32; 16], factor: f32) -> [f32; 16] {
        floats.map(|float| float * factor)
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "sums of a block are far below 2^24")]
    unsafe fn add(mut total: [f32; 16], sums: [i32; 16], scales: [f32; 16]) -> [f32; 16] {
        for ((total, sum), scale) in total.iter_mut().zip(sums).zip(scales) {
            *total += sum as f32 * scale;
        }
        total
    }

    #[inline(always)]
    unsafe fn put(floats: [f32; 16], to: *mut f32) {
        // SAFETY: the caller has room for sixteen there.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn fetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Pointers are read without regard to alignment; that an implementor's instructions are there is the trait's condition.
    #![expect(
        clippy::undocumented_unsafe_blocks,
        reason = "one condition for all: that of the trait, and that of its pointers"
    )]
    #![expect(clippy::multiple_unsafe_ops_per_block, reason = "as above")]

    use std::arch::x86_64::*;

    use super::{BLOCK, Lanes};

    /// AVX-512 with VNNI: four bytes multiplied and added by one instruction, sixteen columns a register.
    pub(in super::super) struct Avx512;

    impl Lanes for Avx512 {
        type Bytes = __m512i;
        type Sums = __m512i;
        type Floats = __m512;
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
        unsafe fn round(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
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
        unsafe fn bytes(from: *const u8) -> __m512i {
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
        unsafe fn put_bytes(bytes: __m512i, to: *mut u8) {
            unsafe { _mm512_storeu_si512(to.cast(), bytes) }
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
        unsafe fn zeros() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn halfs(from: *const half::f16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn floats(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn times(floats: __m512, factor: f32) -> __m512 {
            unsafe { _mm512_mul_ps(floats, _mm512_set1_ps(factor)) }
        }

        #[inline(always)]
        unsafe fn add(total: __m512, sums: __m512i, scales: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scales, total) }
        }

        #[inline(always)]
        unsafe fn put(floats: __m512, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, floats) }
        }

        #[inline(always)]
        unsafe fn fetch(from: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }

    /// AVX2 with FMA and F16C: pairs of bytes first, which do not overflow because a weight is at most 15.
    pub(in super::super) struct Avx2;

    impl Lanes for Avx2 {
        type Bytes = [__m256i; 2];
        type Sums = [__m256i; 2];
        type Floats = [__m256; 2];
        const ROWS: usize = 2;

        #[inline(always)]
        unsafe fn greatest(input: &[f32; BLOCK]) -> u32 {
            unsafe {
                let magnitude = |at: usize| {
                    let bits = _mm256_loadu_si256(input.as_ptr().add(at).cast());
                    _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX))
                };
                let pair = |at: usize| _mm256_max_epu32(magnitude(at), magnitude(at + 8));
                let most = _mm256_max_epu32(pair(0), pair(16));
                let mut all = [0u32; 8];
                _mm256_storeu_si256(all.as_mut_ptr().cast(), most);
                all.into_iter().fold(0, u32::max)
            }
        }

        #[inline(always)]
        unsafe fn round(input: &[f32; BLOCK], factor: f32) -> ([i32; BLOCK / 4], i32) {
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
        unsafe fn bytes(from: *const u8) -> [__m256i; 2] {
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
        unsafe fn put_bytes([first, second]: [__m256i; 2], to: *mut u8) {
            unsafe {
                _mm256_storeu_si256(to.cast(), first);
                _mm256_storeu_si256(to.add(32).cast(), second);
            }
        }

        #[inline(always)]
        unsafe fn sums(start: i32) -> [__m256i; 2] {
            unsafe { [_mm256_set1_epi32(start); 2] }
        }

        #[inline(always)]
        unsafe fn dot(sums: [__m256i; 2], weights: [__m256i; 2], activations: i32) -> [__m256i; 2] {
            unsafe {
                let activations = _mm256_set1_epi32(activations);
                let one = |sums, weights| {
                    let pairs = _mm256_maddubs_epi16(weights, activations);
                    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                };
                [one(sums[0], weights[0]), one(sums[1], weights[1])]
            }
        }

        #[inline(always)]
        unsafe fn zeros() -> [__m256; 2] {
            unsafe { [_mm256_setzero_ps(); 2] }
        }

        #[inline(always)]
        unsafe fn halfs(from: *const half::f16) -> [__m256; 2] {
            unsafe {
                let half = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(from.add(at).cast()));
                [half(0), half(8)]
            }
        }

        #[inline(always)]
        unsafe fn floats(from: *const f32) -> [__m256; 2] {
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }

        #[inline(always)]
        unsafe fn times(floats: [__m256; 2], factor: f32) -> [__m256; 2] {
            unsafe {
                let factor = _mm256_set1_ps(factor);
                [_mm256_mul_ps(floats[0], factor), _mm256_mul_ps(floats[1], factor)]
            }
        }

        #[inline(always)]
        unsafe fn add(total: [__m256; 2], sums: [__m256i; 2], scales: [__m256; 2]) -> [__m256; 2] {
            unsafe {
                let one = |at: usize| _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[at]), scales[at], total[at]);
                [one(0), one(1)]
            }
        }

        #[inline(always)]
        unsafe fn put(floats: [__m256; 2], to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, floats[0]);
                _mm256_storeu_ps(to.add(8), floats[1]);
            }
        }

        #[inline(always)]
        unsafe fn fetch(from: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }
}
