//! What adapters add, against plain sums in double precision.

use std::sync::Arc;

use half::f16;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    AdapterSlot, AdapterWeights, ColumnLengths, ColumnTerms, CpuIsa, Floats, LowRank, LowRankPair,
    low_rank::ActiveAdapters, low_rank_product::Added, packed_weights::PANEL, parts::Parts,
};

const DEPTH: usize = 75;

/// Layers of one node, as first column, columns and rank: one ends within a panel, and columns 100 to 109 have no pair.
const LAYERS: [[usize; 3]; 3] = [[0, 40, 3], [40, 60, 16], [110, 23, 5]];
const COLUMNS: usize = 133;

fn random(count: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..count).map(|_| f16::from_f32(rng.random_range(-1.0..1.0)).to_f32()).collect()
}

fn floats(values: &[f32], is_half: bool) -> Floats {
    if is_half {
        Floats::Float16(values.iter().map(|value| f16::from_f32(*value)).collect())
    } else {
        Floats::Float32(values.to_vec())
    }
}

/// An adapter, and what it adds to a column of a row.
struct Adapter {
    a: Vec<f32>,
    b: Vec<Vec<f32>>,
    scales: [f32; 3],
}

impl Adapter {
    fn new(rng: &mut StdRng) -> Self {
        let rank: usize = LAYERS.iter().map(|layer| layer[2]).sum();
        let b = LAYERS.iter().map(|[_, columns, rank]| random(columns * rank, rng)).collect();
        Self { a: random(rank * DEPTH, rng), b, scales: [0.5, 2.0, -1.0] }
    }

    fn low_rank(&self, is_half: bool, terms: ColumnTerms) -> LowRank {
        let pairs: Vec<LowRankPair> = LAYERS
            .iter()
            .zip(&self.b)
            .zip(self.scales)
            .map(|((&[first_column, columns, rank], b), scale)| LowRankPair {
                first_column,
                columns,
                rank,
                scale,
                b: floats(b, is_half),
            })
            .collect();
        LowRank::new([COLUMNS, DEPTH], floats(&self.a, is_half), &pairs, terms).unwrap()
    }

    fn added(&self, input: &[f32], column: usize) -> f64 {
        let (mut first_row, mut sum) = (0, 0.0);
        for ((&[first, columns, rank], b), scale) in LAYERS.iter().zip(&self.b).zip(self.scales) {
            if (first..first + columns).contains(&column) {
                for r in 0..rank {
                    let row = &self.a[(first_row + r) * DEPTH..][..DEPTH];
                    let dot: f64 = row.iter().zip(input).map(|(a, x)| f64::from(a * x)).sum();
                    sum += f64::from(scale) * dot * f64::from(b[(column - first) * rank + r]);
                }
            }
            first_row += rank;
        }
        sum
    }
}

/// The active adapters of a graph with one node.
fn active(adapters: Vec<(LowRank, f32)>) -> Arc<ActiveAdapters> {
    let slot = AdapterSlot::new([("node".to_owned(), [COLUMNS, DEPTH])]);
    let weights: Vec<(AdapterWeights, f32)> = adapters
        .into_iter()
        .map(|(low_rank, weight)| {
            let mut weights = AdapterWeights::default();
            weights.add(0, low_rank);
            (weights, weight)
        })
        .collect();
    let weights: Vec<(&AdapterWeights, f32)> = weights.iter().map(|(all, weight)| (all, *weight)).collect();
    slot.set(&weights);
    slot.active().unwrap()
}

/// Adds to `output` with these instructions.
fn add(kind: CpuIsa, active: &Arc<ActiveAdapters>, input: &[f32], output: &mut [f32]) {
    let added = Added::of(Arc::clone(active), 0, kind, (input, DEPTH));
    // SAFETY: one call, for all panels; `kind` is one of the processor's.
    unsafe { added.panels(kind, 0..COLUMNS.div_ceil(PANEL), Parts::of(output)) };
}

#[test]
fn layers_of_a_node_get_their_own_products_with_their_weights() {
    let mut rng = StdRng::seed_from_u64(1);
    let (one, two) = (Adapter::new(&mut rng), Adapter::new(&mut rng));
    for is_half in [false, true] {
        let low_rank = |adapter: &Adapter| adapter.low_rank(is_half, ColumnTerms::default());
        let active = active(vec![(low_rank(&one), 0.5), (low_rank(&two), -2.0)]);
        for (kind, rows) in CpuIsa::all().into_iter().flat_map(|kind| [1, 3, 4, 21].map(|rows| (kind, rows)))
        {
            let (input, base) = (random(rows * DEPTH, &mut rng), random(rows * COLUMNS, &mut rng));
            let mut output = base.clone();
            add(kind, &active, &input, &mut output);
            for (row, input) in input.chunks(DEPTH).enumerate() {
                for column in 0..COLUMNS {
                    let at = row * COLUMNS + column;
                    let expected =
                        f64::from(base[at]) + 0.5 * one.added(input, column) - 2.0 * two.added(input, column);
                    let difference = (f64::from(output[at]) - expected).abs();
                    assert!(difference < 2e-4, "{kind:?}, {rows} rows, column {column}: {difference}");
                }
                // A row has the same bits by itself.
                let mut alone = base[row * COLUMNS..][..COLUMNS].to_vec();
                add(kind, &active, input, &mut alone);
                assert!(alone == output[row * COLUMNS..][..COLUMNS], "{kind:?}, {rows} rows, row {row}");
            }
        }
    }
}

#[test]
fn factors_multiply_the_whole_product_and_biases_are_added_after_them() {
    let mut rng = StdRng::seed_from_u64(2);
    let adapter = Adapter::new(&mut rng);
    let lengths = ColumnLengths {
        magnitude: random(COLUMNS, &mut rng),
        base: vec![4.0; COLUMNS],
        cross: vec![0.5; COLUMNS],
        added: vec![1.0; COLUMNS],
    };
    let (scaled, bias) = (random(COLUMNS, &mut rng), random(COLUMNS, &mut rng));
    let terms = ColumnTerms {
        scaled_bias: Some(scaled.clone()),
        bias: Some(bias.clone()),
        lengths: Some(lengths.clone()),
    };
    let weight = 3.0;
    let active = active(vec![(adapter.low_rank(true, terms), weight)]);
    let (input, base) = (random(DEPTH, &mut rng), random(COLUMNS, &mut rng));
    let mut output = base.clone();
    add(CpuIsa::detect(), &active, &input, &mut output);
    // 4 + 2 · 3 · 0.5 + 9 · 1
    let length = 16f64.sqrt();
    for column in 0..COLUMNS {
        let product = f64::from(base[column]) + f64::from(weight) * adapter.added(&input, column);
        let expected = product * f64::from(lengths.magnitude[column]) / length
            + f64::from(weight * scaled[column])
            + f64::from(bias[column]);
        assert!((f64::from(output[column]) - expected).abs() < 2e-4, "column {column}");
    }
}

#[test]
fn tensors_of_a_wrong_size_are_refused() {
    let pair = |first_column, b: usize| LowRankPair {
        first_column,
        columns: 8,
        rank: 2,
        scale: 1.0,
        b: Floats::Float32(vec![0.0; b]),
    };
    let new = |a: usize, pair: LowRankPair, terms| {
        LowRank::new([16, 4], Floats::Float32(vec![0.0; a]), &[pair], terms).map(drop)
    };
    new(8, pair(8, 16), ColumnTerms::default()).unwrap();
    new(7, pair(8, 16), ColumnTerms::default()).unwrap_err();
    new(8, pair(8, 15), ColumnTerms::default()).unwrap_err();
    new(8, pair(9, 16), ColumnTerms::default()).unwrap_err();
    new(8, pair(usize::MAX, 16), ColumnTerms::default()).unwrap_err();
    new(8, pair(8, 16), ColumnTerms { bias: Some(vec![0.0; 15]), ..ColumnTerms::default() }).unwrap_err();
}
