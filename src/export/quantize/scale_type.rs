//! The number format of scales.

use half::{bf16, f16};

use crate::manifest::Dtype;

/// The number format of scales in the data file.
///
/// `MatMulNBits` takes scales of its activations' type. In a graph that computes in float32 they are stored in float16 all the
/// same and the graph casts them, which ONNX Runtime does once, when it loads the model: half a bit less for each weight of
/// blocks of 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::export) enum ScaleType {
    /// float16 times 2^8. Without the factor, scales below 2^-14 would lose bits; with it, scales may be 2^-22 to 255.
    #[default]
    ScaledFloat16,
    /// As the activations: of experts, whose function reads scales as they are.
    Float32,
    /// As the activations.
    Float16,
    /// As the activations.
    Bfloat16,
}

impl ScaleType {
    /// That of a graph that computes in `dtype`.
    pub(in crate::export) const fn of_graph(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::ScaledFloat16,
            Dtype::Float16 => Self::Float16,
            Dtype::Bfloat16 => Self::Bfloat16,
        }
    }

    /// That of a graph that computes in `dtype`, for operators that take scales as they are stored.
    pub(in crate::export) const fn of_activations(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float32,
            Dtype::Float16 => Self::Float16,
            Dtype::Bfloat16 => Self::Bfloat16,
        }
    }

    /// What the data file holds.
    pub(in crate::export) const fn stored(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::Float32,
            Self::ScaledFloat16 | Self::Float16 => Dtype::Float16,
            Self::Bfloat16 => Dtype::Bfloat16,
        }
    }

    /// What scales are multiplied with before they are stored: a power of two.
    pub(in crate::export) const fn factor(self) -> f32 {
        match self {
            Self::ScaledFloat16 => 256.0,
            Self::Float32 | Self::Float16 | Self::Bfloat16 => 1.0,
        }
    }

    /// The nearest scale that can be stored; infinite if `scale` is too large.
    pub(super) fn round(self, scale: f32) -> f32 {
        let scaled = scale * self.factor();
        let stored = match self {
            Self::Float32 => scaled,
            Self::ScaledFloat16 | Self::Float16 => f16::from_f32(scaled).to_f32(),
            Self::Bfloat16 => bf16::from_f32(scaled).to_f32(),
        };
        stored / self.factor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_scales_keep_their_bits_in_a_float32_graph() {
        for scale in [1e-6f32, 3.3e-5, 0.01, 0.7, 200.0] {
            let relative = (ScaleType::ScaledFloat16.round(scale) - scale).abs() / scale;
            assert!(relative < 1e-3, "{scale}: {relative}");
        }
        assert_eq!(ScaleType::ScaledFloat16.round(300.0), f32::INFINITY);
    }
}
