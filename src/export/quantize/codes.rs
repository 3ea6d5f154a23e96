//! Codes of weights, and how they are packed.

/// Which code stands for zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPoints {
    /// The middle code: symmetric quantization.
    #[default]
    Middle,
    /// One for each block, stored with the scale: asymmetric quantization.
    PerBlock,
}

/// Bits of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::export) enum Bits {
    Four,
    Eight,
}

impl Bits {
    pub(in crate::export) const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The code of zero, unless a block has a zero point.
    pub(super) const fn middle(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// The greatest code.
    pub(super) const fn max_code(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }

    /// Bytes of `codes` codes.
    pub(in crate::export) const fn bytes(self, codes: usize) -> usize {
        match self {
            Self::Four => codes.div_ceil(2),
            Self::Eight => codes,
        }
    }

    /// Fills `bytes` with as many of `codes` as it has room for, the first of a pair in the low half of its byte.
    pub(super) fn pack(self, codes: &[u8], bytes: &mut [u8]) {
        match self {
            Self::Eight => bytes.copy_from_slice(&codes[..bytes.len()]),
            Self::Four => {
                for (byte, pair) in bytes.iter_mut().zip(codes.chunks(2)) {
                    *byte = pair[0] | pair.get(1).map_or(0, |high| high << 4);
                }
            }
        }
    }
}
