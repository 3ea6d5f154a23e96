//! Products against plain sums over the decoded weights, in double precision.

use half::f16;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    CpuIsa, PackedStorage, PackedWeights, QuantizedBlocks, WeightBits,
    float_product::{FloatProduct, FloatWeights},
    parts::Parts,
    quantized_product::{Product, Rounded, Rounding},
};

/// Weights as `MatMulNBits` has them.
struct Weights {
    bits: WeightBits,
    columns: usize,
    depth: usize,
    block: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
}

impl Weights {
    fn random(
        (bits, has_zeros): (WeightBits, bool),
        [columns, depth, block]: [usize; 3],
        rng: &mut StdRng,
    ) -> Self {
        let of_column = depth.div_ceil(block);
        let blocks = columns * of_column;
        let codes = (0..bits.bytes(blocks * block)).map(|_| rng.random()).collect();
        let scales = (0..blocks).map(|_| rng.random_range(-1.0..1.0)).collect();
        let bytes = match bits {
            WeightBits::Four => of_column.div_ceil(2),
            WeightBits::Eight => of_column,
        };
        let zero_points = (0..if has_zeros { columns * bytes } else { 0 }).map(|_| rng.random()).collect();
        Self { bits, columns, depth, block, codes, scales, zero_points }
    }

    fn scaled(mut self, scale: f32) -> Self {
        self.scales.iter_mut().for_each(|one| *one *= scale);
        self
    }

    fn blocks(&self) -> QuantizedBlocks<'_> {
        let Self { bits, columns, depth, block, ref codes, ref scales, ref zero_points } = *self;
        QuantizedBlocks { bits, columns, depth, block, codes, scales, zero_points }
    }

    fn weight(&self, column: usize, at: usize) -> f64 {
        let code = |codes: &[u8], at: usize| match self.bits {
            WeightBits::Four => f64::from((codes[at / 2] >> (at % 2 * 4)) & 15),
            WeightBits::Eight => f64::from(codes[at]),
        };
        let of_column = self.depth.div_ceil(self.block);
        let block = column * of_column + at / self.block;
        let zero = if self.zero_points.is_empty() {
            f64::from(self.bits.middle())
        } else {
            let bytes = self.zero_points.len() / self.columns;
            code(&self.zero_points[column * bytes..], at / self.block)
        };
        (code(&self.codes, block * self.block + at % self.block) - zero) * f64::from(self.scales[block])
    }

    fn product(&self, input: &[f32]) -> Vec<f64> {
        let row = |row: &[f32]| {
            let column = |c| row.iter().enumerate().map(|(k, x)| self.weight(c, k) * f64::from(*x)).sum();
            (0..self.columns).map(column).collect::<Vec<f64>>()
        };
        input.chunks(self.depth).flat_map(row).collect()
    }
}

fn multiply(kind: CpuIsa, matrix: &PackedWeights, input: &[f32]) -> Vec<f32> {
    let rows = input.len() / matrix.depth();
    let mut output = vec![f32::NAN; rows * matrix.columns()];
    let mut rounded = Rounded::default();
    rounded.resize(rows, matrix);
    // SAFETY: this machine has that kind.
    let rounding = unsafe { Rounding::new(input, matrix, kind, &mut rounded) };
    for group in 0..rounding.groups() {
        // SAFETY: one call at a time.
        unsafe { rounding.group(group) };
    }
    let product = Product { matrix, rounded: rounded.all(), output: Parts::of(&mut output) };
    // SAFETY: one call, for a kind that this machine has.
    unsafe { product.panels(kind, 0..matrix.panels()) };
    output
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn bits_of(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn widths() -> impl Strategy<Value = (WeightBits, bool)> {
    (prop::sample::select(vec![WeightBits::Four, WeightBits::Eight]), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_processor_computes_the_plain_sum_but_for_the_rounding_of_activations(
        (columns, depth, rows) in (1usize..100, 1usize..200, 1usize..20),
        block in prop::sample::select(vec![32usize, 64, 128]),
        width in widths(),
        scale in prop::sample::select(vec![1e-6f32, 1e-2, 3e4]),
        seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = Weights::random(width, [columns, depth, block], &mut rng).scaled(scale);
        let input: Vec<f32> = (0..rows * depth).map(|_| rng.random_range(-3.0..3.0)).collect();
        let matrix = PackedWeights::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
        let exact = weights.product(&input);
        let greatest = if width.1 { 2 } else { 1 } * width.0.middle();
        let max: f64 = f64::from(scale) * f64::from(greatest) * 3.0;
        for kind in CpuIsa::all() {
            let output = multiply(kind, &matrix, &input);
            let error = norm(output.iter().zip(&exact).map(|(a, b)| f64::from(*a) - b));
            // Half a step of 127 for each activation, as a root of a sum of squares, with room to spare.
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let bound = max / 127.0 * ((depth * exact.len()) as f64).sqrt();
            prop_assert!(error <= bound, "{kind:?}: off by {error}, at most {bound}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others(
        (columns, depth, rows) in (1usize..100, 1usize..200, 1usize..20),
        width in widths(),
        seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = Weights::random(width, [columns, depth, 32], &mut rng);
        let input: Vec<f32> = (0..rows * depth).map(|_| rng.random_range(-3.0..3.0)).collect();
        let matrix = PackedWeights::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
        let floats: Vec<f32> = (0..columns * depth).map(|_| rng.random_range(-1.0..1.0)).collect();
        let halfs: Vec<f16> = floats.iter().map(|x| f16::from_f32(*x)).collect();
        for kind in CpuIsa::all() {
            let alone: Vec<f32> = input.chunks(depth).flat_map(|row| multiply(kind, &matrix, row)).collect();
            prop_assert!(bits_of(&alone) == bits_of(&multiply(kind, &matrix, &input)), "{kind:?}, {width:?}");
            for weights in [FloatWeights::Float32(&floats), FloatWeights::Float16(&halfs)] {
                let product = |input| multiply_floats(kind, weights, columns, input, depth);
                let alone: Vec<f32> = input.chunks(depth).flat_map(product).collect();
                prop_assert!(bits_of(&alone) == bits_of(&product(&input)), "{kind:?}, floats");
            }
        }
    }

    #[test]
    fn products_with_floats_are_the_plain_sums(
        (columns, depth, rows) in (1usize..100, 1usize..200, 1usize..20),
        seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let input: Vec<f32> = (0..rows * depth).map(|_| rng.random_range(-3.0..3.0)).collect();
        let halfs: Vec<f16> =
            (0..columns * depth).map(|_| f16::from_f32(rng.random_range(-1.0..1.0))).collect();
        let floats: Vec<f32> = halfs.iter().map(|x| x.to_f32()).collect();
        let sum = |row: &[f32], column: &[f32]| -> f64 {
            row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let exact: Vec<f64> = input
            .chunks(depth)
            .flat_map(|row| floats.chunks(depth).map(|column| sum(row, column)).collect::<Vec<_>>())
            .collect();
        for kind in CpuIsa::all() {
            let output = multiply_floats(kind, FloatWeights::Float32(&floats), columns, &input, depth);
            let worst = output.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            prop_assert!(worst <= 1e-4, "{kind:?}: off by {worst}");
            let from_halfs = multiply_floats(kind, FloatWeights::Float16(&halfs), columns, &input, depth);
            prop_assert!(bits_of(&output) == bits_of(&from_halfs), "{kind:?}");
        }
    }
}

/// `[rows, columns]`.
fn multiply_floats(
    kind: CpuIsa,
    weights: FloatWeights,
    columns: usize,
    input: &[f32],
    depth: usize,
) -> Vec<f32> {
    let mut output = vec![f32::NAN; input.len() / depth * columns];
    let product = FloatProduct { weights, input, depth, columns, output: Parts::of(&mut output) };
    // SAFETY: one call, for a kind that this machine has.
    unsafe { product.compute(kind, 0..product.panels()) };
    output
}

#[test]
fn values_that_int8_represents_are_exact_on_all_processors() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut weights = Weights::random((WeightBits::Four, false), [70, 96, 32], &mut rng);
    weights.scales.iter_mut().for_each(|scale| *scale = 0.5);
    let mut input: Vec<f32> = (0..14 * 96).map(|_| f32::from(rng.random_range(-127i8..=127))).collect();
    input.iter_mut().step_by(32).for_each(|x| *x = 127.0);
    let matrix = PackedWeights::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
    let exact = weights.product(&input);
    for kind in CpuIsa::all() {
        let output: Vec<f64> = multiply(kind, &matrix, &input).into_iter().map(f64::from).collect();
        assert_eq!(output, exact, "{kind:?}");
    }
}

#[test]
fn non_finite_values_do_not_spread_to_other_rows() {
    let weights = Weights::random((WeightBits::Four, false), [33, 64, 32], &mut StdRng::seed_from_u64(6));
    let matrix = PackedWeights::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut input = vec![1.0; 2 * 64];
        input[40] = bad;
        for kind in CpuIsa::all() {
            let output = multiply(kind, &matrix, &input);
            assert!(output[..33].iter().all(|x| x.is_nan()), "{kind:?}, {bad}");
            assert!(output[33..].iter().all(|x| x.is_finite()), "{kind:?}, {bad}");
        }
    }
    let zeros = multiply(CpuIsa::detect(), &matrix, &[0.0; 64]);
    assert!(zeros.iter().all(|x| *x == 0.0));
}

#[test]
fn sizes_that_do_not_belong_together_make_no_matrix() {
    let weights = Weights::random((WeightBits::Four, false), [4, 64, 32], &mut StdRng::seed_from_u64(7));
    let good = weights.blocks();
    assert!(PackedWeights::new(good, &mut PackedStorage::default()).is_some());
    let nan = vec![f32::NAN; good.scales.len()];
    let wrong = [
        QuantizedBlocks { columns: 5, ..good },
        QuantizedBlocks { columns: usize::MAX, ..good },
        QuantizedBlocks { columns: 0, codes: &[], scales: &[], ..good },
        QuantizedBlocks { depth: 65, ..good },
        QuantizedBlocks { depth: 0, codes: &[], scales: &[], ..good },
        QuantizedBlocks { block: 16, ..good },
        QuantizedBlocks { block: 0, ..good },
        QuantizedBlocks { codes: &good.codes[1..], ..good },
        QuantizedBlocks { scales: &nan, ..good },
        QuantizedBlocks { zero_points: &good.codes[..3], ..good },
        QuantizedBlocks { bits: WeightBits::Eight, ..good },
    ];
    for blocks in wrong {
        assert!(
            PackedWeights::new(blocks, &mut PackedStorage::default()).is_none(),
            "{} x {} by {}",
            blocks.columns,
            blocks.depth,
            blocks.block
        );
    }
}
