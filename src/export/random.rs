//! Weights from a seed: a model's shape without a checkpoint, to measure speed with.
//!
//! Every row can be made on its own: a tensor's name picks the generator's stream, and a row's number the position in
//! it. So threads need not agree on an order, and the same seed gives the same bytes.

use std::ops::Range;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use sha2::{Digest, Sha256};

use super::param::{Param, Shape};

/// Normal weights of standard deviation `1/sqrt(cols)`, norms of one, biases of zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct RandomWeights {
    pub seed: u64,
}

impl RandomWeights {
    /// The given rows of `param`, row by row.
    pub(super) fn rows(self, param: &Param, rows: Range<usize>) -> Vec<f32> {
        match param.shape {
            Shape::Vector(len) if param.name.ends_with(".bias") => vec![0.0; len],
            Shape::Vector(len) => vec![1.0; len],
            Shape::Matrix { cols, .. } => {
                let mut generator = self.generator(&param.name, rows.start, cols);
                let scale = (cols as f32).sqrt().recip();
                rows.flat_map(|_| normals(&mut generator, cols, scale)).collect()
            }
        }
    }

    fn generator(self, name: &str, row: usize, cols: usize) -> ChaCha8Rng {
        let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        let stream = digest.iter().take(8).fold(0, |stream, byte| stream << 8 | u64::from(*byte));
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(stream);
        generator.set_word_pos(row as u128 * cols.next_multiple_of(2) as u128);
        generator
    }
}

/// `len` normal numbers; takes an even number of words from the generator.
fn normals(generator: &mut ChaCha8Rng, len: usize, scale: f32) -> Vec<f32> {
    let mut row = Vec::with_capacity(len.next_multiple_of(2));
    while row.len() < len {
        row.extend(normal_pair(generator.next_u32(), generator.next_u32()).map(|n| n * scale));
    }
    row.truncate(len);
    row
}

/// Box and Muller's transform of two uniform words.
fn normal_pair(radius: u32, angle: u32) -> [f32; 2] {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    // From the upper 24 bits, all that a float32 holds; one more than zero, whose logarithm is infinite.
    let uniform = ((radius >> 8) + 1) as f32 * UNIT;
    let radius = (-2.0 * uniform.ln()).sqrt();
    let (sine, cosine) = ((angle >> 8) as f32 * UNIT * std::f32::consts::TAU).sin_cos();
    [radius * cosine, radius * sine]
}

/// One row of standard normal numbers, for tests.
#[cfg(test)]
pub(super) fn normal_row(seed: u64, len: usize) -> Vec<f32> {
    normals(&mut ChaCha8Rng::seed_from_u64(seed), len, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_same_however_it_is_asked_for() {
        let param = Param::matrix("x.weight", 4, 7);
        let weights = RandomWeights { seed: 1 };
        let whole = weights.rows(&param, 0..4);
        let pieces: Vec<_> = (0..4).flat_map(|row| weights.rows(&param, row..row + 1)).collect();
        assert_eq!(whole, pieces);
    }

    #[test]
    fn seeds_and_names_give_different_weights() {
        let [a, b] = ["a.weight", "b.weight"].map(|name| Param::matrix(name, 1, 8));
        let rows = |seed, param: &Param| RandomWeights { seed }.rows(param, 0..1);
        assert_ne!(rows(1, &a), rows(2, &a));
        assert_ne!(rows(1, &a), rows(1, &b));
    }

    #[test]
    fn weights_are_normal_with_the_fan_in_as_their_variance() {
        let row = normal_row(3, 100_000);
        let mean = row.iter().sum::<f32>() / 1e5;
        let variance = row.iter().map(|x| x * x).sum::<f32>() / 1e5;
        let within_one = row.iter().filter(|x| x.abs() < 1.0).count();
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!((67_000..69_500).contains(&within_one), "{within_one}");
        assert!(normal_pair(0, 0)[0].is_finite() && normal_pair(u32::MAX, u32::MAX)[0].is_finite());
    }
}
