//! Products against plain sums over the decoded weights, in double precision.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{CpuIsa, Int4Blocks, PackedInt4, PackedStorage, Parts, Product, Rounded, Rounding};

/// Weights as `MatMulNBits` has them.
struct Weights {
    columns: usize,
    depth: usize,
    block: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Weights {
    fn random(columns: usize, depth: usize, block: usize, scale: f32, rng: &mut StdRng) -> Self {
        let blocks = columns * depth.div_ceil(block);
        let codes = (0..blocks * block / 2).map(|_| rng.random()).collect();
        let scales = (0..blocks).map(|_| rng.random_range(-scale..scale)).collect();
        Self { columns, depth, block, codes, scales }
    }

    fn blocks(&self) -> Int4Blocks<'_> {
        let Self { columns, depth, block, ref codes, ref scales } = *self;
        Int4Blocks { columns, depth, block, codes, scales }
    }

    fn weight(&self, column: usize, at: usize) -> f64 {
        let block = column * self.depth.div_ceil(self.block) + at / self.block;
        let byte = self.codes[block * self.block / 2 + at % self.block / 2];
        let code = if at.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        (f64::from(code) - 8.0) * f64::from(self.scales[block])
    }

    fn product(&self, input: &[f32]) -> Vec<f64> {
        let row = |row: &[f32]| {
            let column = |c| row.iter().enumerate().map(|(k, x)| self.weight(c, k) * f64::from(*x)).sum();
            (0..self.columns).map(column).collect::<Vec<f64>>()
        };
        input.chunks(self.depth).flat_map(row).collect()
    }
}

fn multiply(kind: CpuIsa, matrix: &PackedInt4, input: &[f32]) -> Vec<f32> {
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
    let product = Product { matrix, rounded: &rounded, output: Parts::of(&mut output) };
    // SAFETY: one call, for a kind that this machine has.
    unsafe { product.panels(kind, 0..matrix.panels()) };
    output
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_processor_computes_the_plain_sum_but_for_the_rounding_of_activations(
        (columns, depth, rows) in (1usize..100, 1usize..200, 1usize..20),
        block in prop::sample::select(vec![32usize, 64, 128]),
        scale in prop::sample::select(vec![1e-6f32, 1e-2, 3e4]),
        seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = Weights::random(columns, depth, block, scale, &mut rng);
        let input: Vec<f32> = (0..rows * depth).map(|_| rng.random_range(-3.0..3.0)).collect();
        let matrix = PackedInt4::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
        let exact = weights.product(&input);
        let max: f64 = f64::from(scale) * 8.0 * 3.0;
        for kind in CpuIsa::all() {
            let output = multiply(kind, &matrix, &input);
            let error = norm(output.iter().zip(&exact).map(|(a, b)| f64::from(*a) - b));
            // Half a step of 127 for each activation, as a root of a sum of squares, with room to spare.
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let bound = max / 127.0 * ((depth * exact.len()) as f64).sqrt();
            prop_assert!(error <= bound, "{kind:?}: off by {error}, at most {bound}");
        }
    }
}

#[test]
fn values_that_int8_represents_are_exact_on_all_processors() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut weights = Weights::random(70, 96, 32, 1.0, &mut rng);
    weights.scales.iter_mut().for_each(|scale| *scale = 0.5);
    let mut input: Vec<f32> = (0..14 * 96).map(|_| f32::from(rng.random_range(-127i8..=127))).collect();
    input.iter_mut().step_by(32).for_each(|x| *x = 127.0);
    let matrix = PackedInt4::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
    let exact = weights.product(&input);
    for kind in CpuIsa::all() {
        let output: Vec<f64> = multiply(kind, &matrix, &input).into_iter().map(f64::from).collect();
        assert_eq!(output, exact, "{kind:?}");
    }
}

#[test]
fn non_finite_values_do_not_spread_to_other_rows() {
    let weights = Weights::random(33, 64, 32, 1.0, &mut StdRng::seed_from_u64(6));
    let matrix = PackedInt4::new(weights.blocks(), &mut PackedStorage::default()).unwrap();
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
    let weights = Weights::random(4, 64, 32, 1.0, &mut StdRng::seed_from_u64(7));
    let good = weights.blocks();
    assert!(PackedInt4::new(good, &mut PackedStorage::default()).is_some());
    let nan = vec![f32::NAN; good.scales.len()];
    let wrong = [
        Int4Blocks { columns: 5, ..good },
        Int4Blocks { columns: usize::MAX, ..good },
        Int4Blocks { columns: 0, codes: &[], scales: &[], ..good },
        Int4Blocks { depth: 65, ..good },
        Int4Blocks { depth: 0, codes: &[], scales: &[], ..good },
        Int4Blocks { block: 16, ..good },
        Int4Blocks { block: 0, ..good },
        Int4Blocks { codes: &good.codes[1..], ..good },
        Int4Blocks { scales: &nan, ..good },
    ];
    for blocks in wrong {
        assert!(
            PackedInt4::new(blocks, &mut PackedStorage::default()).is_none(),
            "{} x {} by {}",
            blocks.columns,
            blocks.depth,
            blocks.block
        );
    }
}
