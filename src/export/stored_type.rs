//! Types that tensors have in files, and their conversion to float32.
//!
//! Quantized types are those of GGML (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): a row is cut into blocks
//! of 32 or 256 weights, and a block has its scales beside its codes. The arithmetic is that of GGML's reference code, operation
//! by operation, so that a dequantized weight has the same bits as there.

use std::fmt;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::known_blocks::KnownBlocks;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names that GGML and everybody else uses")]
pub(super) enum StoredType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// Weights of a large block.
const SUPER: usize = 256;

/// Weights of a small block.
const SMALL: usize = 32;

/// Weights that share a scale in the types whose codes can be kept.
pub(super) const SCALE_BLOCK: usize = SMALL;

/// The code of zero in blocks of four bits without offsets: those with an offset count from the lowest code here.
const MIDDLE: f32 = 8.0;

/// The values of IQ4_NL's and IQ4_XS's codes.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4's codes, doubled: E2M1, sign first.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl StoredType {
    /// Types by GGML's numbers.
    pub(super) fn of_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            20 => Self::IQ4_NL,
            23 => Self::IQ4_XS,
            30 => Self::BF16,
            39 => Self::MXFP4,
            _ => return None,
        })
    }

    /// Weights of a block; 1 where nothing is shared.
    pub(super) const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL | Self::MXFP4 => {
                SMALL
            }
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => SUPER,
        }
    }

    /// Bytes of a block.
    pub(super) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::MXFP4 => 17,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::IQ4_XS => 136,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Scales and offsets of the blocks of [`SCALE_BLOCK`] weights in whole blocks of this type, which is one that
    /// [`Quantizer::repacks`](super::quantize::Quantizer::repacks); other types have none.
    pub(super) fn known_blocks(self, bytes: &[u8]) -> KnownBlocks {
        let mut known = KnownBlocks::default();
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::Q4_0 | Self::Q8_0 => known.scales.push(half_at(block, 0)),
                Self::Q4_1 => {
                    let (scale, least) = (half_at(block, 0), half_at(block, 2));
                    known.scales.push(scale);
                    known.offsets.push(least + MIDDLE * scale);
                }
                Self::Q4_K => {
                    let (scale, least) = (half_at(block, 0), half_at(block, 2));
                    for group in 0..SUPER / SMALL {
                        let (step, offset) = six_bits(&block[4..16], group);
                        let step = scale * step;
                        known.scales.push(step);
                        known.offsets.push(MIDDLE * step - least * offset);
                    }
                }
                _ => {}
            }
        }
        known
    }

    /// Converts whole blocks to float32.
    pub(super) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
            Self::BF16 => {
                bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
            }
            Self::F16 => {
                let halves: Vec<_> =
                    bytes.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
                // On slices it uses the processor's conversion, four or eight at a time.
                let mut wide = vec![0.0; halves.len()];
                halves.convert_to_f32_slice(&mut wide);
                wide
            }
            Self::Q4_0 => blocks::<18, SMALL>(bytes, q4_0),
            Self::Q4_1 => blocks::<20, SMALL>(bytes, q4_1),
            Self::Q5_0 => blocks::<22, SMALL>(bytes, q5_0),
            Self::Q5_1 => blocks::<24, SMALL>(bytes, q5_1),
            Self::Q8_0 => blocks::<34, SMALL>(bytes, q8_0),
            Self::IQ4_NL => blocks::<18, SMALL>(bytes, iq4_nl),
            Self::MXFP4 => blocks::<17, SMALL>(bytes, mxfp4),
            Self::Q2_K => blocks::<84, SUPER>(bytes, q2_k),
            Self::Q3_K => blocks::<110, SUPER>(bytes, q3_k),
            Self::Q4_K => blocks::<144, SUPER>(bytes, q4_k),
            Self::Q5_K => blocks::<176, SUPER>(bytes, q5_k),
            Self::Q6_K => blocks::<210, SUPER>(bytes, q6_k),
            Self::IQ4_XS => blocks::<136, SUPER>(bytes, iq4_xs),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Converts blocks of `BYTES` bytes and `WEIGHTS` weights, one after the other.
fn blocks<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    block: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) -> Vec<f32> {
    let (from, _) = bytes.as_chunks::<BYTES>();
    let mut weights = vec![0.0; from.len() * WEIGHTS];
    for (from, to) in from.iter().zip(weights.as_chunks_mut::<WEIGHTS>().0) {
        block(from, to);
    }
    weights
}

/// The float16 at byte `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Small blocks have the first half of their weights in low nibbles, the second in high ones.
fn nibbles(codes: &[u8], to: &mut [f32; SMALL], weight: impl Fn(usize, u8) -> f32) {
    for (at, byte) in codes.iter().enumerate() {
        to[at] = weight(at, byte & 15);
        to[at + SMALL / 2] = weight(at + SMALL / 2, byte >> 4);
    }
}

fn q4_0(block: &[u8; 18], to: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], to, |_, code| (f32::from(code) - 8.0) * scale);
}

fn q4_1(block: &[u8; 20], to: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], to, |_, code| f32::from(code) * scale + least);
}

fn q5_0(block: &[u8; 22], to: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    let fifth = fifth_bits(&block[2..6]);
    nibbles(&block[6..], to, |at, code| (f32::from(code + fifth(at)) - 16.0) * scale);
}

fn q5_1(block: &[u8; 24], to: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let fifth = fifth_bits(&block[4..8]);
    nibbles(&block[8..], to, |at, code| f32::from(code + fifth(at)) * scale + least);
}

/// 16 for each weight whose bit is set in `bytes`.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    |at| (bytes[at / 8] >> (at % 8) & 1) << 4
}

fn q8_0(block: &[u8; 34], to: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for (to, code) in to.iter_mut().zip(&block[2..]) {
        *to = f32::from(code.cast_signed()) * scale;
    }
}

fn iq4_nl(block: &[u8; 18], to: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], to, |_, code| scale * f32::from(IQ4[usize::from(code)]));
}

fn mxfp4(block: &[u8; 17], to: &mut [f32; SMALL]) {
    // Half of 2^(e - 127), as the values are doubled; the two least are denormal numbers.
    let scale = match u32::from(block[0]) {
        exponent @ 0..2 => f32::from_bits(0x0020_0000 << exponent),
        exponent => f32::from_bits((exponent - 1) << 23),
    };
    nibbles(&block[1..], to, |_, code| f32::from(E2M1[usize::from(code)]) * scale);
}

fn q2_k(block: &[u8; 84], to: &mut [f32; SUPER]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for (group, to) in to.chunks_exact_mut(16).enumerate() {
        let (step, offset) = (scale * f32::from(scales[group] & 15), least * f32::from(scales[group] >> 4));
        let (codes, shift) = two_bits(codes, group);
        for (to, code) in to.iter_mut().zip(codes) {
            *to = step * f32::from(code >> shift & 3) - offset;
        }
    }
}

/// The bytes that have the two low bits of 16 weights, and where in them: 128 weights share 32 bytes.
fn two_bits(codes: &[u8], group: usize) -> (&[u8], usize) {
    (&codes[group / 8 * 32 + group % 2 * 16..][..16], group % 8 / 2 * 2)
}

fn q3_k(block: &[u8; 110], to: &mut [f32; SUPER]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (group, to) in to.chunks_exact_mut(16).enumerate() {
        // Low four bits of 16 scales in eight bytes, then two more bits of each in four.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let step = scale * (f32::from(low | top << 4) - 32.0);
        let (codes, shift) = two_bits(codes, group);
        let high = &high[group % 2 * 16..][..16];
        for ((to, code), high) in to.iter_mut().zip(codes).zip(high) {
            let below = if high >> (group / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *to = step * (f32::from(code >> shift & 3) - below);
        }
    }
}

/// Scale and least value of a group of 32 weights, six bits each, of eight groups in twelve bytes.
fn six_bits(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let packed = scales[group + 4];
        (packed & 15 | scales[group - 4] >> 6 << 4, packed >> 4 | scales[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

fn q4_k(block: &[u8; 144], to: &mut [f32; SUPER]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (group, to) in to.chunks_exact_mut(32).enumerate() {
        let (step, offset) = six_bits(&block[4..16], group);
        let (step, offset) = (scale * step, least * offset);
        let codes = &block[16 + group / 2 * 32..][..32];
        for (to, code) in to.iter_mut().zip(codes) {
            *to = step * f32::from(code >> (group % 2 * 4) & 15) - offset;
        }
    }
}

fn q5_k(block: &[u8; 176], to: &mut [f32; SUPER]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let high = &block[16..48];
    for (group, to) in to.chunks_exact_mut(32).enumerate() {
        let (step, offset) = six_bits(&block[4..16], group);
        let (step, offset) = (scale * step, least * offset);
        let codes = &block[48 + group / 2 * 32..][..32];
        for ((to, code), high) in to.iter_mut().zip(codes).zip(high) {
            let code = code >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
            *to = step * f32::from(code) - offset;
        }
    }
}

fn q6_k(block: &[u8; 210], to: &mut [f32; SUPER]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, to) in to.chunks_exact_mut(32).enumerate() {
        // 128 weights share 64 bytes of low bits and 32 of high ones.
        let (part, quarter) = (group / 4, group % 4);
        let low = &low[part * 64 + quarter % 2 * 32..][..32];
        let high = &high[part * 32..][..32];
        for (at, to) in to.iter_mut().enumerate() {
            let step = scale * f32::from(scales[group * 2 + at / 16].cast_signed());
            let code = low[at] >> (quarter / 2 * 4) & 15 | (high[at] >> (quarter * 2) & 3) << 4;
            *to = step * (f32::from(code) - 32.0);
        }
    }
}

fn iq4_xs(block: &[u8; 136], to: &mut [f32; SUPER]) {
    let scale = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (group, to) in to.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let step = scale * (f32::from(u16::from(low) | (high >> (2 * group) & 3) << 4) - 32.0);
        nibbles(&block[8 + group * 16..][..16], to, |_, code| step * f32::from(IQ4[usize::from(code)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_types_are_widened_exactly() {
        let bytes = |values: [u16; 2]| values.map(u16::to_le_bytes).concat();
        assert_eq!(StoredType::F16.widen(&bytes([0x3C00, 0xB800])), [1.0, -0.5]);
        assert_eq!(StoredType::BF16.widen(&bytes([0x4040, 0xBF80])), [3.0, -1.0]);
        assert_eq!(StoredType::F32.widen(&1.25f32.to_le_bytes()), [1.25]);
    }

    #[test]
    fn quantized_types_are_widened_as_by_the_gguf_package_of_llama_cpp() {
        let fixture = include_bytes!("../../tests/fixtures/gguf/blocks.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(fixture).unwrap();
        let quantized = (0..64).filter_map(StoredType::of_ggml).filter(|stored| stored.block() > 1);
        for stored in quantized {
            let data = |part: &str| tensors.tensor(&format!("{stored}.{part}")).unwrap().data().to_vec();
            let expected = StoredType::F32.widen(&data("weights"));
            assert_eq!(stored.widen(&data("bytes")), expected, "{stored}");
        }
    }

    #[test]
    fn every_type_has_a_number_and_sizes_that_its_converter_accepts() {
        let types: Vec<_> = (0..64).filter_map(StoredType::of_ggml).collect();
        assert_eq!(types.len(), 16);
        for stored in types {
            assert_eq!(
                stored.widen(&vec![0; 3 * stored.block_bytes()]).len(),
                3 * stored.block(),
                "{stored}"
            );
        }
    }
}
