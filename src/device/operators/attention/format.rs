//! The layout of keys and values in the cache.
//!
//! A row is one head of one position. A cache grows and is copied by rows, so code outside this module need not know their
//! content:
//!
//! ```text
//! float32  [head_dim] f32
//! float16  [head_dim] f16                        clamped to ±65,504
//! int8     [head_dim] i8, [head_dim / 32] f16    a scale for each 32, rounded up
//! ```

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use half::{f16, slice::HalfFloatSliceExt};

use super::super::simd_f32::{LANES, SimdF32};

/// The format of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The type that they are computed in.
    Float32,
    /// Half as many bytes.
    Float16,
    /// A little more than a quarter.
    Int8,
}

/// Numbers of an int8 row that share a scale.
const BLOCK: usize = 32;

impl Format {
    /// Elements of a row of `head_dim` numbers, as the cache's last dimension has them.
    #[must_use]
    pub fn elements(self, head_dim: usize) -> usize {
        match self {
            Self::Float32 | Self::Float16 => head_dim,
            Self::Int8 => head_dim + head_dim.div_ceil(BLOCK) * size_of::<f16>(),
        }
    }

    /// Bytes of a row.
    pub(super) fn bytes(self, head_dim: usize) -> usize {
        let of_element = match self {
            Self::Float32 => size_of::<f32>(),
            Self::Float16 => size_of::<f16>(),
            Self::Int8 => size_of::<i8>(),
        };
        self.elements(head_dim) * of_element
    }

    /// Writes a row.
    pub(super) fn encode(self, numbers: &[f32], row: &mut [u8]) {
        match self {
            Self::Float32 => {
                for (number, bytes) in numbers.iter().zip(row.as_chunks_mut().0) {
                    *bytes = number.to_ne_bytes();
                }
            }
            Self::Float16 => encode_halfs(numbers, row),
            Self::Int8 => encode_bytes(numbers, row),
        }
    }

    /// Reads a row, and fills the rest of `numbers` with zeros.
    ///
    /// # Safety
    /// The same as for [`SimdF32`].
    #[inline(always)]
    pub(super) unsafe fn decode<V: SimdF32>(self, row: &[u8], head_dim: usize, numbers: &mut [f32]) {
        assert!(row.len() >= self.bytes(head_dim) && numbers.len() >= head_dim, "a row of the cache");
        let whole = head_dim / LANES * LANES;
        let (row, to) = (row.as_ptr(), numbers.as_mut_ptr());
        for at in (0..whole).step_by(LANES) {
            // SAFETY: sixteen numbers from `at` on are within both (asserted above); as the caller promises.
            unsafe {
                let floats = match self {
                    Self::Float32 => V::load(row.cast::<f32>().add(at)),
                    Self::Float16 => V::halfs(row.cast::<f16>().add(at)),
                    Self::Int8 => {
                        let scale = row.add(head_dim).cast::<f16>().add(at / BLOCK).read_unaligned();
                        V::mul(V::bytes(row.cast::<i8>().add(at)), V::splat(scale.to_f32()))
                    }
                };
                V::store(floats, to.add(at));
            }
        }
        for (at, number) in numbers.iter_mut().enumerate().skip(whole) {
            // SAFETY: the row's number `at` is within it (asserted above).
            *number = if at < head_dim { unsafe { self.one(row, head_dim, at) } } else { 0.0 };
        }
    }

    /// Number `at` of a row.
    ///
    /// # Safety
    /// `row` must be one of `head_dim` numbers, `at` below that.
    unsafe fn one(self, row: *const u8, head_dim: usize, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::Float32 => row.cast::<f32>().add(at).read_unaligned(),
                Self::Float16 => row.cast::<f16>().add(at).read_unaligned().to_f32(),
                Self::Int8 => {
                    let scale = row.add(head_dim).cast::<f16>().add(at / BLOCK).read_unaligned();
                    f32::from(row.cast::<i8>().add(at).read()) * scale.to_f32()
                }
            }
        }
    }
}

/// Clamps a number to float16's range; NaN stays NaN.
fn within_half(number: f32) -> f32 {
    number.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())
}

fn encode_halfs(numbers: &[f32], row: &mut [u8]) {
    for (numbers, bytes) in numbers.chunks(LANES).zip(row.chunks_mut(LANES * size_of::<f16>())) {
        let (mut clamped, mut halfs) = ([0.0; LANES], [f16::ZERO; LANES]);
        for (clamped, number) in clamped.iter_mut().zip(numbers) {
            *clamped = within_half(*number);
        }
        halfs.convert_from_f32_slice(&clamped);
        for (half, bytes) in halfs.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = half.to_ne_bytes();
        }
    }
}

fn encode_bytes(numbers: &[f32], row: &mut [u8]) {
    let (bytes, scales) = row.split_at_mut(numbers.len());
    let blocks = numbers.chunks(BLOCK).zip(bytes.chunks_mut(BLOCK)).zip(scales.as_chunks_mut().0);
    for ((numbers, bytes), place) in blocks {
        let max = numbers.iter().fold(0f32, |max, number| max.max(number.abs()));
        // A value that is not finite makes the whole block NaN.
        let is_finite = numbers.iter().all(|number| number.is_finite());
        let scale = if is_finite { f16::from_f32(within_half(max / 127.0)) } else { f16::NAN };
        *place = scale.to_ne_bytes();
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        for (byte, number) in bytes.iter_mut().zip(numbers) {
            // A scale that was rounded down leaves the greatest a little above 127.
            #[expect(
                clippy::cast_possible_truncation,
                reason = "from -127 to 127; of what is none it does not matter"
            )]
            let rounded = (number * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
            *byte = rounded.cast_unsigned();
        }
    }
}
