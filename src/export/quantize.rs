//! Block-wise quantization, as ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized` decode it.
//!
//! A block of consecutive weights of a row shares a scale and a zero point; a weight is an unsigned code, decoded as
//! `(code - zero_point) · scale`. Symmetric quantization has the zero point in the middle of the codes (8 of 16, 128 of
//! 256) and stores none. Its range is lopsided: one more step below zero than above. Scaling the weight of greatest
//! magnitude, with its sign, to the lowest code (as llama.cpp's `Q4_0` does) therefore uses the whole range. Asymmetric
//! quantization stores a zero point a block, a code like the others, so its range goes from the least weight to the
//! greatest.
//!
//! These "plain" ranges only think of one weight or two. We try a few around them, refit each scale by least squares to
//! the codes that it gives, and keep the one with the least squared error. Refitting and rounding again never increases
//! the error, and the plain range is among the candidates, as are the symmetric ones among the asymmetric, so neither
//! is worse than the scheme that it extends. The squared error, relative to plain symmetric rounding:
//!
//! | | int4, 32 | 64 | 128 | int8, 32 | 64 | 128 |
//! |---|---|---|---|---|---|---|
//! | symmetric, normal weights | 0.89 | 0.90 | 0.88 | 0.87 | 0.91 | 0.93 |
//! | asymmetric, normal weights | 0.79 | 0.84 | 0.85 | 0.70 | 0.76 | 0.80 |
//! | plain asymmetric, normal weights | 0.88 | 0.92 | 0.95 | 0.80 | 0.83 | 0.85 |
//! | symmetric, the demonstration model | 0.89 | 0.90 | 0.89 | 0.87 | 0.90 | 0.92 |
//! | asymmetric, the demonstration model | 0.80 | 0.85 | 0.86 | 0.70 | 0.77 | 0.80 |
//!
//! Four times as many candidates gain less than 0.01 with four bits.

use std::array;

use super::{
    known_blocks::KnownBlocks,
    stored_type::{SCALE_BLOCK, StoredType},
};

/// How weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantizer {
    pub bits: Bits,
    /// Consecutive weights that share a scale: 32, 64 or 128.
    pub block_size: usize,
    pub zero_points: ZeroPoints,
    pub rounding: Rounding,
    /// Whether a number is added to the decoded weights of each block, as in GGML's Q4_1 and Q4_K.
    pub has_offsets: bool,
}

/// The code of zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPoints {
    /// The middle code: symmetric quantization.
    #[default]
    Middle,
    /// Where it suits each block, stored beside the scale: asymmetric quantization.
    PerBlock,
}

/// How the range of a block is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// For the least squared error.
    #[default]
    LeastError,
    /// So that the greatest weights just fit: only there to measure what the other gains.
    Plain,
}

/// Bits of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Four,
    Eight,
}

impl Bits {
    pub(super) const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The code of zero, unless a block has a zero point.
    const fn middle(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// The greatest code.
    const fn max_code(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }

    /// Bytes of `codes` codes.
    pub(super) const fn bytes(self, codes: usize) -> usize {
        match self {
            Self::Four => codes.div_ceil(2),
            Self::Eight => codes,
        }
    }

    /// Fills `bytes` with as many of `codes` as it has room for, the first of a pair in the low half of its byte.
    fn pack(self, codes: &[u8], bytes: &mut [u8]) {
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

/// The output of a quantized row.
pub(super) struct PackedRow<'a> {
    /// Padded to whole blocks or not.
    pub codes: &'a mut [u8],
    /// One for each block.
    pub scales: &'a mut [f32],
    /// One a block, packed as codes are, in whole bytes; empty when all are in the middle.
    pub zero_points: &'a mut [u8],
    /// One for each block; empty without offsets.
    pub offsets: &'a mut [f32],
}

impl Quantizer {
    /// Blocks in a row of `cols` weights; the last may be short.
    pub(super) const fn blocks(self, cols: usize) -> usize {
        cols.div_ceil(self.block_size)
    }

    /// Bytes of a row of whole blocks, which is how `MatMulNBits` wants it.
    pub(super) const fn padded_row_bytes(self, cols: usize) -> usize {
        self.bits.bytes(self.blocks(cols) * self.block_size)
    }

    /// Bytes of a row's zero points.
    pub(super) const fn zero_point_row_bytes(self, cols: usize) -> usize {
        match self.zero_points {
            ZeroPoints::Middle => 0,
            ZeroPoints::PerBlock => self.bits.bytes(self.blocks(cols)),
        }
    }

    /// Whether `stored` has the same blocks: then its scales give its own codes again, without another rounding.
    pub(super) fn repacks(self, stored: StoredType) -> bool {
        let (bits, has_offsets) = match stored {
            StoredType::Q4_0 => (Bits::Four, false),
            StoredType::Q4_1 | StoredType::Q4_K => (Bits::Four, true),
            StoredType::Q8_0 => (Bits::Eight, false),
            _ => return false,
        };
        bits == self.bits
            && has_offsets == self.has_offsets
            && self.block_size == SCALE_BLOCK
            && self.zero_points == ZeroPoints::Middle
    }

    /// `count` blocks of zeros.
    pub(super) fn zero_blocks(self, count: usize) -> KnownBlocks {
        KnownBlocks { scales: vec![0.0; count], offsets: vec![0.0; if self.has_offsets { count } else { 0 }] }
    }

    /// The same with offsets instead of zero points.
    pub(super) fn with_offsets(self) -> Self {
        Self { zero_points: ZeroPoints::Middle, has_offsets: true, ..self }
    }

    /// How many of its blocks a group of `size` numbers of `bits` bits around the middle is, if whole ones.
    pub(super) fn blocks_of_group(self, bits: u32, size: usize) -> Option<usize> {
        let is_same = matches!((self.bits, bits), (Bits::Four, 4) | (Bits::Eight, 8));
        let is_whole = self.zero_points == ZeroPoints::Middle
            && !self.has_offsets
            && size.is_multiple_of(self.block_size);
        (is_same && is_whole).then_some(size / self.block_size)
    }

    /// Quantizes one row; with `known` blocks if there are any.
    pub(super) fn quantize_row(self, row: &[f32], known: Option<&KnownBlocks>, packed: PackedRow) {
        let PackedRow { codes, scales, zero_points, offsets } = packed;
        let mut row_zero_points = Vec::with_capacity(scales.len());
        let blocks = row.chunks(self.block_size).zip(codes.chunks_mut(self.bits.bytes(self.block_size)));
        for (number, ((weights, codes), scale)) in blocks.zip(scales).enumerate() {
            let mut block = Block::of(weights);
            let grid = match known {
                Some(known) => Grid { scale: known.scales[number], zero_point: self.bits.middle() },
                None => block.grid(self),
            };
            if let Some(offset) = known.and_then(|known| known.offsets.get(number)) {
                block.subtract(*offset);
                offsets[number] = *offset;
            }
            self.bits.pack(&block.codes(grid, self.bits), codes);
            *scale = grid.scale;
            row_zero_points.push(grid.zero_point);
        }
        self.bits.pack(&row_zero_points, zero_points);
    }
}

/// The longest block.
const MAX_BLOCK: usize = 128;

/// Where symmetric candidates put the weight of greatest magnitude, in steps from the lowest code. The first is plain.
const NUDGES: [f32; 9] = [0.0, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0];

/// Over how many more steps than there are asymmetric candidates lay the range. The first is plain.
const STRETCHES: [f32; 6] = [0.0, -0.5, 0.5, 1.0, 1.5, 2.0];

/// Sums are kept in this many lanes, so that the compiler may use vector instructions without reordering additions.
const LANES: usize = 8;

/// How codes decode.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grid {
    scale: f32,
    zero_point: u8,
}

/// A grid to try.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// One over the scale.
    inverse: f32,
    zero_point: u8,
}

/// A grid and its squared error.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// Sum of squares, in squares of the greatest magnitude: those of tiny weights would vanish.
    error: f32,
    grid: Grid,
}

/// Between which weights a block lies; zero is always within.
#[derive(Clone, Copy, Debug)]
struct Range {
    min: f32,
    max: f32,
}

impl Range {
    fn of(weights: &[f32]) -> Self {
        let (mut min, mut max) = ([0f32; LANES], [0f32; LANES]);
        for weights in weights.as_chunks::<LANES>().0 {
            min = array::from_fn(|lane| min[lane].min(weights[lane]));
            max = array::from_fn(|lane| max[lane].max(weights[lane]));
        }
        Self { min: min.into_iter().fold(0.0, f32::min), max: max.into_iter().fold(0.0, f32::max) }
    }

    /// The plain candidate first; none for a block of zeros, or of numbers so small that their inverse is infinite.
    fn candidates(self, bits: Bits, zero_points: ZeroPoints) -> impl Iterator<Item = Candidate> {
        let stretches = match zero_points {
            ZeroPoints::Middle => &[],
            ZeroPoints::PerBlock => &STRETCHES[..],
        };
        let asymmetric = stretches.iter().map(move |stretch| self.asymmetric(*stretch, bits));
        let symmetric = NUDGES.iter().map(move |nudge| self.symmetric(*nudge, bits));
        asymmetric.chain(symmetric).filter(|candidate| candidate.inverse.is_normal())
    }

    fn symmetric(self, nudge: f32, bits: Bits) -> Candidate {
        let extreme = if -self.min >= self.max { self.min } else { self.max };
        let zero_point = bits.middle();
        Candidate { inverse: (nudge - f32::from(zero_point)) / extreme, zero_point }
    }

    fn asymmetric(self, stretch: f32, bits: Bits) -> Candidate {
        let max = f32::from(bits.max_code());
        let inverse = (max + stretch) / (self.max - self.min);
        // Both ends lose the same.
        let zero_point = within(-self.min * inverse - stretch / 2.0, 0.0, max);
        Candidate { inverse, zero_point: low_byte(round(zero_point)) }
    }

    fn magnitude(self) -> f32 {
        self.max.max(-self.min)
    }
}

/// The weights of a block, with zeros behind.
struct Block {
    weights: [f32; MAX_BLOCK],
    /// Its length in whole lanes.
    len: usize,
    /// The last candidate's codes, in steps from zero.
    steps: [f32; MAX_BLOCK],
    /// Their rounding errors, in steps.
    rest: [f32; MAX_BLOCK],
}

impl Block {
    fn of(weights: &[f32]) -> Self {
        let zeros = [0.0; MAX_BLOCK];
        let len = weights.len().next_multiple_of(LANES);
        let mut block = Self { weights: zeros, len, steps: zeros, rest: zeros };
        block.weights[..weights.len()].copy_from_slice(weights);
        block
    }

    fn subtract(&mut self, offset: f32) {
        self.weights[..self.len].iter_mut().for_each(|weight| *weight -= offset);
    }

    fn grid(&mut self, quantizer: Quantizer) -> Grid {
        let Quantizer { bits, zero_points, rounding, .. } = quantizer;
        let range = Range::of(&self.weights[..self.len]);
        let mut candidates = range.candidates(bits, zero_points);
        let none = Grid { scale: 0.0, zero_point: bits.middle() };
        match rounding {
            Rounding::Plain => candidates.next().map_or(none, |Candidate { inverse, zero_point }| Grid {
                scale: inverse.recip(),
                zero_point,
            }),
            Rounding::LeastError => {
                let mut best = Fit { error: f32::INFINITY, grid: none };
                for candidate in candidates {
                    let fit = self.fit(candidate, bits, range.magnitude());
                    if fit.error < best.error {
                        best = fit;
                    }
                }
                best.grid
            }
        }
    }

    /// Rounds to the candidate's codes, and finds the scale that these codes fit best with.
    ///
    /// Sums are of what the codes leave and not of the weights: with eight bits, the error is too small a difference
    /// between the latter. There is a loop for each, because the compiler ties sums over one loop in knots.
    fn fit(&mut self, Candidate { inverse, zero_point }: Candidate, bits: Bits, magnitude: f32) -> Fit {
        let [lowest, highest] = ends(zero_point, bits);
        let places = self.steps[..self.len].iter_mut().zip(&mut self.rest);
        for (weight, (steps, rest)) in self.weights.iter().zip(places) {
            let scaled = weight * inverse;
            *steps = round(within(scaled, lowest, highest));
            *rest = scaled - *steps;
        }
        let (steps, rest) = (&self.steps[..self.len], &self.rest[..self.len]);
        let rest_by_steps = dot(rest, steps);
        let refit = rest_by_steps / dot(steps, steps);
        let error = (dot(rest, rest) - refit * rest_by_steps) / (inverse * magnitude).powi(2);
        Fit { error, grid: Grid { scale: (1.0 + refit) / inverse, zero_point } }
    }

    /// Codes of the weights, and of the zeros behind them.
    fn codes(&self, Grid { scale, zero_point }: Grid, bits: Bits) -> [u8; MAX_BLOCK] {
        let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
        let [lowest, highest] = ends(zero_point, bits);
        let mut codes = [zero_point; MAX_BLOCK];
        for (code, weight) in codes.iter_mut().zip(&self.weights[..self.len]) {
            *code = low_byte(round(within(weight * inverse, lowest, highest)) + f32::from(zero_point));
        }
        codes
    }
}

/// The lowest and the highest code, in steps from zero.
fn ends(zero_point: u8, bits: Bits) -> [f32; 2] {
    [0, bits.max_code()].map(|code| f32::from(code) - f32::from(zero_point))
}

/// Of whole lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        sums = array::from_fn(|lane| sums[lane] + a[lane] * b[lane]);
    }
    sums.iter().sum()
}

/// `value.clamp(lowest, highest)` in two instructions, for values that are not NaN.
fn within(value: f32, lowest: f32, highest: f32) -> f32 {
    let value = if value > lowest { value } else { lowest };
    if value < highest { value } else { highest }
}

/// Floats near this value are one apart.
const UNITS_ARE_ULPS: f32 = 12_582_912.0; // 1.5 · 2^23

/// To the nearest whole number, for magnitudes below 2^22. Unlike `f32::round` this is two additions, not a call.
fn round(value: f32) -> f32 {
    (value + UNITS_ARE_ULPS) - UNITS_ARE_ULPS
}

/// A whole number from 0 to 255 as a byte. Unlike a cast, which cares for all others, it can be done to several at once.
fn low_byte(value: f32) -> u8 {
    (value + UNITS_ARE_ULPS).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::random::normal_row;

    fn unpack(bytes: &[u8], bits: Bits) -> Vec<u8> {
        match bits {
            Bits::Four => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
            Bits::Eight => bytes.to_vec(),
        }
    }

    fn quantize(row: &[f32], quantizer: Quantizer) -> Vec<f32> {
        quantize_with(row, None, quantizer)
    }

    fn quantize_with(row: &[f32], known: Option<&KnownBlocks>, quantizer: Quantizer) -> Vec<f32> {
        let mut codes = vec![0; quantizer.padded_row_bytes(row.len())];
        let mut scales = vec![0.0; quantizer.blocks(row.len())];
        let mut zero_points = vec![0; quantizer.zero_point_row_bytes(row.len())];
        let mut offsets = vec![0.0; scales.len()];
        let packed = PackedRow {
            codes: &mut codes,
            scales: &mut scales,
            zero_points: &mut zero_points,
            offsets: &mut offsets,
        };
        quantizer.quantize_row(row, known, packed);
        let zero_points = match quantizer.zero_points {
            ZeroPoints::Middle => vec![quantizer.bits.middle(); scales.len()],
            ZeroPoints::PerBlock => unpack(&zero_points, quantizer.bits),
        };
        let decoded = |(i, code): (usize, u8)| {
            let block = i / quantizer.block_size;
            f32::from(i16::from(code) - i16::from(zero_points[block])) * scales[block] + offsets[block]
        };
        let decoded: Vec<f32> = unpack(&codes, quantizer.bits).into_iter().enumerate().map(decoded).collect();
        assert!(decoded[row.len()..].iter().all(|w| *w == 0.0), "padding decodes to zero");
        decoded[..row.len()].to_vec()
    }

    fn squared_error(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    fn error(row: &[f32], quantizer: Quantizer) -> f64 {
        squared_error(row, &quantize(row, quantizer))
    }

    fn quantizers() -> impl Iterator<Item = Quantizer> {
        let zero_points = [ZeroPoints::Middle, ZeroPoints::PerBlock];
        [Bits::Four, Bits::Eight].into_iter().flat_map(move |bits| {
            zero_points.into_iter().flat_map(move |zero_points| {
                [32, 64, 128].map(|block_size| Quantizer {
                    bits,
                    block_size,
                    zero_points,
                    rounding: Rounding::LeastError,
                    has_offsets: false,
                })
            })
        })
    }

    #[test]
    fn least_error_is_never_worse_than_plain_and_better_on_normal_weights() {
        for quantizer in quantizers() {
            let (mut fitted, mut plain) = (0.0, 0.0);
            for block in normal_row(7, 64 * 1024).chunks(quantizer.block_size) {
                let errors = [Rounding::LeastError, Rounding::Plain]
                    .map(|rounding| error(block, Quantizer { rounding, ..quantizer }));
                assert!(errors[0] <= errors[1] * (1.0 + 1e-5), "{quantizer:?}: {errors:?}");
                fitted += errors[0];
                plain += errors[1];
            }
            assert!(fitted / plain < 0.96, "{quantizer:?}: {}", fitted / plain);
        }
    }

    #[test]
    fn zero_points_are_never_worse_than_none_and_better_where_weights_are_lopsided() {
        let lopsided: Vec<f32> = normal_row(9, 4096).iter().map(|w| w + 1.5).collect();
        for quantizer in quantizers().filter(|quantizer| quantizer.zero_points == ZeroPoints::PerBlock) {
            let symmetric = Quantizer { zero_points: ZeroPoints::Middle, ..quantizer };
            for block in normal_row(8, 4096).chunks(quantizer.block_size) {
                assert!(error(block, quantizer) <= error(block, symmetric) * (1.0 + 1e-5), "{quantizer:?}");
            }
            let ratio = error(&lopsided, quantizer) / error(&lopsided, symmetric);
            assert!(ratio < 0.6, "{quantizer:?}: {ratio}");
        }
    }

    #[test]
    fn weights_that_are_codes_times_a_scale_come_back_exactly() {
        let row: Vec<f32> = (0..128u8).map(|i| (f32::from(i % 16) - 8.0) * 0.25).collect();
        for quantizer in quantizers() {
            assert_eq!(quantize(&row, quantizer), row, "{quantizer:?}");
        }
        let above_zero: Vec<f32> = (0..128u8).map(|i| f32::from(i % 16) * 0.25).collect();
        for quantizer in quantizers().filter(|quantizer| quantizer.zero_points == ZeroPoints::PerBlock) {
            assert_eq!(quantize(&above_zero, quantizer), above_zero, "{quantizer:?}");
        }
    }

    #[test]
    fn blocks_of_a_gguf_file_keep_their_weights_to_the_bit() {
        let fixture = include_bytes!("../../tests/fixtures/gguf/blocks.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(fixture).unwrap();
        for (stored, bits) in [(StoredType::Q4_0, Bits::Four), (StoredType::Q8_0, Bits::Eight)] {
            let bytes = tensors.tensor(&format!("{stored}.bytes")).unwrap().data();
            let weights = stored.widen(bytes);
            let quantizer =
                quantizers().find(|quantizer| quantizer.bits == bits && quantizer.repacks(stored));
            let kept = quantize_with(&weights, Some(&stored.known_blocks(bytes)), quantizer.unwrap());
            assert!(weights.iter().zip(&kept).all(|(weight, kept)| weight == kept), "{stored}");
        }
    }

    #[test]
    fn blocks_with_offsets_keep_their_codes() {
        let fixture = include_bytes!("../../tests/fixtures/gguf/blocks.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(fixture).unwrap();
        for stored in [StoredType::Q4_1, StoredType::Q4_K] {
            let bytes = tensors.tensor(&format!("{stored}.bytes")).unwrap().data();
            let (weights, known) = (stored.widen(bytes), stored.known_blocks(bytes));
            let quantizer = quantizers().map(Quantizer::with_offsets).find(|one| one.repacks(stored));
            let kept = quantize_with(&weights, Some(&known), quantizer.unwrap());
            for (block, (weights, kept)) in weights.chunks(32).zip(kept.chunks(32)).enumerate() {
                // A step to another code would be a whole scale.
                let most = 1e-3 * known.scales[block].abs() + 1e-6 * known.offsets[block].abs();
                for (weight, kept) in weights.iter().zip(kept) {
                    assert!((weight - kept).abs() <= most, "{stored}: {weight} became {kept}");
                }
            }
        }
    }

    #[test]
    fn nasty_blocks_decode_to_finite_numbers_close_to_them() {
        let both_ends = [3e38, -3e38].repeat(20);
        for row in [vec![0.0; 40], vec![1e-42; 40], vec![-3e38; 40], both_ends, vec![1e-30; 33], vec![5.0]] {
            for quantizer in quantizers() {
                for (decoded, w) in quantize(&row, quantizer).iter().zip(&row) {
                    assert!(
                        (decoded - w).abs() <= w.abs().max(1e-37) / 7.0,
                        "{quantizer:?}: {w} became {decoded}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_first_code_of_a_pair_is_in_the_low_half_of_the_byte() {
        let quantizer = quantizers().next().unwrap();
        let mut codes = [0; 16];
        let packed =
            PackedRow { codes: &mut codes, scales: &mut [0.0], zero_points: &mut [], offsets: &mut [] };
        quantizer.quantize_row(&[-8.0, 7.0, 1.0], None, packed);
        assert_eq!(codes[..3], [0xF0, 0x89, 0x88]);
    }

    #[test]
    fn zero_points_are_packed_as_codes_are_in_whole_bytes_a_row() {
        let quantizer = quantizers().find(|quantizer| quantizer.zero_points == ZeroPoints::PerBlock).unwrap();
        let mut row = [0.0; 96];
        for (w, value) in row.iter_mut().zip(0..32u8) {
            *w = f32::from(value % 16);
        }
        row[64..].fill(-15.0);
        assert_eq!(quantizer.zero_point_row_bytes(row.len()), 2);
        let (mut codes, mut scales, mut zero_points) = ([0; 48], [0.0; 3], [0xFF; 2]);
        let packed = PackedRow {
            codes: &mut codes,
            scales: &mut scales,
            zero_points: &mut zero_points,
            offsets: &mut [],
        };
        quantizer.quantize_row(&row, None, packed);
        // From zero upwards; a block of zeros; from zero downwards.
        assert_eq!((zero_points, scales[0]), ([0x80, 0x0F], 1.0));
    }
}
