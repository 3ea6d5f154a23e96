//! Numbers as they lie in files.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::manifest::Dtype;

/// `values` as little-endian numbers of `dtype`, rounded to the nearest.
pub(super) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Float32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Float16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            // On slices it uses the processor's conversion, four or eight at a time.
            halves.convert_from_f32_slice(values);
            halves.iter().flat_map(|half| half.to_le_bytes()).collect()
        }
        Dtype::Bfloat16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// The greatest magnitude that `dtype` holds and does not round to infinity.
pub(super) fn greatest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float32 => f32::MAX,
        // Half a step above the greatest is rounded down still; that much is not worth telling apart.
        Dtype::Float16 => f16::MAX.to_f32(),
        Dtype::Bfloat16 => bf16::MAX.to_f32(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian_and_rounded_to_the_nearest() {
        assert_eq!(encode(&[1.0], Dtype::Float32), 1f32.to_le_bytes());
        assert_eq!(encode(&[1.0, -2.0], Dtype::Float16), [0x00, 0x3C, 0x00, 0xC0]);
        assert_eq!(encode(&[1.0, 1.003_906_4], Dtype::Bfloat16), [0x80, 0x3F, 0x81, 0x3F]);
    }

    #[test]
    fn the_greatest_number_stays_finite() {
        for dtype in [Dtype::Float16, Dtype::Bfloat16] {
            assert!(!encode(&[greatest(dtype)], dtype).ends_with(&[0x7C]));
        }
        assert_eq!(encode(&[65_504.0], Dtype::Float16), [0xFF, 0x7B]);
    }
}
