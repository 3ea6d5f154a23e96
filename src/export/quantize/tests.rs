//! Properties of quantized rows.

use super::*;
use crate::export::{known_blocks::KnownBlocks, random::normal_row, stored_type::StoredType};

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

fn error(row: &[f32], quantizer: Quantizer) -> f64 {
    row.iter().zip(quantize(row, quantizer)).map(|(w, decoded)| f64::from(w - decoded).powi(2)).sum()
}

fn quantizers() -> impl Iterator<Item = Quantizer> {
    let zero_points = [ZeroPoints::Middle, ZeroPoints::PerBlock];
    [Bits::Four, Bits::Eight].into_iter().flat_map(move |bits| {
        zero_points.into_iter().flat_map(move |zero_points| {
            [32, 64, 128].map(|block_size| Quantizer {
                bits,
                block_size,
                zero_points,
                scale_type: ScaleType::default(),
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
            assert!(errors[0] <= errors[1] * (1.0 + 1e-3), "{quantizer:?}: {errors:?}");
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
            assert!(error(block, quantizer) <= error(block, symmetric) * (1.0 + 1e-3), "{quantizer:?}");
        }
        let ratio = error(&lopsided, quantizer) / error(&lopsided, symmetric);
        assert!(ratio < 0.6, "{quantizer:?}: {ratio}");
    }
}

#[test]
fn weights_that_are_codes_times_a_scale_come_back() {
    // Exactly with four bits. With eight, codes may be multiples of 17, and a scale in 16 bits is not exact.
    let same = |found: Vec<f32>, row: &[f32], bits: Bits| {
        let most = if bits == Bits::Four { 0.0 } else { 0.5f32.powi(11) };
        found.iter().zip(row).all(|(found, weight)| (found - weight).abs() <= most * weight.abs())
    };
    let row: Vec<f32> = (0..128u8).map(|i| (f32::from(i % 16) - 8.0) * 0.25).collect();
    for quantizer in quantizers() {
        assert!(same(quantize(&row, quantizer), &row, quantizer.bits), "{quantizer:?}");
    }
    let above_zero: Vec<f32> = (0..128u8).map(|i| f32::from(i % 16) * 0.25).collect();
    for quantizer in quantizers().filter(|quantizer| quantizer.zero_points == ZeroPoints::PerBlock) {
        assert!(same(quantize(&above_zero, quantizer), &above_zero, quantizer.bits), "{quantizer:?}");
    }
}

#[test]
fn blocks_of_a_gguf_file_keep_their_weights_to_the_bit() {
    let fixture = include_bytes!("../../../tests/fixtures/gguf/blocks.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(fixture).unwrap();
    for (stored, bits) in [(StoredType::Q4_0, Bits::Four), (StoredType::Q8_0, Bits::Eight)] {
        let bytes = tensors.tensor(&format!("{stored}.bytes")).unwrap().data();
        let weights = stored.widen(bytes);
        let quantizer = quantizers().find(|quantizer| quantizer.bits == bits && quantizer.repacks(stored));
        let kept = quantize_with(&weights, Some(&stored.known_blocks(bytes)), quantizer.unwrap());
        assert!(weights.iter().zip(&kept).all(|(weight, kept)| weight == kept), "{stored}");
    }
}

#[test]
fn blocks_with_offsets_keep_their_codes() {
    let fixture = include_bytes!("../../../tests/fixtures/gguf/blocks.safetensors");
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
    let both_ends = [800.0, -800.0].repeat(20);
    for row in [vec![0.0; 40], vec![1e-42; 40], vec![-900.0; 40], both_ends, vec![1e-5; 33], vec![5.0]] {
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
    let packed = PackedRow { codes: &mut codes, scales: &mut [0.0], zero_points: &mut [], offsets: &mut [] };
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
    let packed =
        PackedRow { codes: &mut codes, scales: &mut scales, zero_points: &mut zero_points, offsets: &mut [] };
    quantizer.quantize_row(&row, None, packed);
    // From zero upwards; a block of zeros; from zero downwards.
    assert_eq!((zero_points, scales[0]), ([0x80, 0x0F], 1.0));
}
