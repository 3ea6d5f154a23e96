//! Difference between two sets of logits.

/// Differences of logits, accumulated over positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Difference {
    pub(super) positions: usize,
    pub(super) max: f32,
    /// Positions where both have the same most probable token.
    pub(super) same_top: usize,
    logits: usize,
    sum: f64,
    sum_of_squares: f64,
}

impl Difference {
    /// Adds one position.
    pub(super) fn add(&mut self, found: &[f32], expected: &[f32]) {
        self.positions += 1;
        self.logits += expected.len();
        self.same_top += usize::from(top(found) == top(expected));
        for (a, b) in found.iter().zip(expected) {
            let apart = (a - b).abs();
            // `f32::max` ignores NaN, which must count as the largest difference.
            self.max = if apart.is_nan() { f32::INFINITY } else { self.max.max(apart) };
            self.sum += f64::from(apart);
            self.sum_of_squares += f64::from(apart).powi(2);
        }
    }

    /// Adds the positions of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        self.positions += other.positions;
        self.logits += other.logits;
        self.same_top += other.same_top;
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / self.logits as f64
    }

    pub(super) fn rms(&self) -> f64 {
        (self.sum_of_squares / self.logits as f64).sqrt()
    }
}

fn top(logits: &[f32]) -> usize {
    let higher = |max: (usize, f32), (i, x): (usize, &f32)| if *x > max.1 { (i, *x) } else { max };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), higher).0
}

/// Log probabilities of `logits`.
pub(super) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    let shift = max + sum.ln();
    logits.iter().map(|x| f64::from(*x) - shift).collect()
}

/// Kullback-Leibler divergence of `found` from `expected`, both log probabilities, in nats.
pub(super) fn divergence(found: &[f64], expected: &[f64]) -> f64 {
    found.iter().zip(expected).map(|(found, expected)| expected.exp() * (expected - found)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_accumulate_over_positions() {
        let mut difference = Difference::default();
        difference.add(&[1.0, 2.0], &[1.0, 2.5]);
        difference.add(&[3.0, 1.0], &[3.0, 4.0]);
        assert_eq!((difference.positions, difference.max, difference.same_top), (2, 3.0, 1));
        assert_eq!((difference.mean(), difference.rms()), (0.875, (9.25f64 / 4.0).sqrt()));
    }

    #[test]
    fn nan_counts_as_an_infinite_difference() {
        for found in [[f32::NAN, 0.0], [0.0, f32::NAN]] {
            let mut difference = Difference::default();
            difference.add(&found, &[0.0, 0.0]);
            assert_eq!(difference.max, f32::INFINITY);
        }
    }

    #[test]
    fn probabilities_sum_to_one_for_large_logits() {
        for logits in [[0.0, 1.0, 2.0], [-1e4, 0.0, 1e4], [3e38, -3e38, 0.0]] {
            let sum: f64 = log_softmax(&logits).iter().map(|log| log.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{logits:?}: {sum}");
        }
    }

    #[test]
    fn the_divergence_is_zero_for_equal_and_positive_for_different_logits() {
        let [even, sure] = [[0.0, 0.0], [-1e3, 1e3]].map(|logits| log_softmax(&logits));
        assert_eq!(divergence(&even, &even), 0.0);
        assert_eq!(divergence(&even, &sure), 2f64.ln());
        assert!(divergence(&sure, &even) > 100.0 && divergence(&sure, &even).is_finite());
    }
}
