//! The scale and the zero point of one block, for the least weighted error.

use std::array;

use super::{
    codes::{Bits, ZeroPoints},
    scale_type::ScaleType,
};

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
pub(super) struct Grid {
    pub scale: f32,
    pub zero_point: u8,
}

impl Grid {
    /// Of a block of zeros.
    pub(super) const fn zero(bits: Bits) -> Self {
        Self { scale: 0.0, zero_point: bits.middle() }
    }

    /// The code closest to `weight`.
    pub(super) fn code(self, weight: f32, bits: Bits) -> u8 {
        let [lowest, highest] = ends(self.zero_point, bits);
        low_byte(round(within(weight * self.inverse(), lowest, highest)) + f32::from(self.zero_point))
    }

    /// What `code` decodes to.
    pub(super) fn value(self, code: u8) -> f32 {
        (f32::from(code) - f32::from(self.zero_point)) * self.scale
    }

    /// One over the scale; zero for a block of zeros.
    pub(super) fn inverse(self) -> f32 {
        if self.scale == 0.0 { 0.0 } else { self.scale.recip() }
    }
}

/// What a search may choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub bits: Bits,
    pub zero_points: ZeroPoints,
    pub scale_type: ScaleType,
}

/// A grid to try.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// One over the scale.
    inverse: f32,
    zero_point: u8,
}

/// A grid and its weighted squared error.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// In squares of the greatest magnitude: those of tiny weights would vanish.
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
pub(super) struct Block {
    weights: [f32; MAX_BLOCK],
    /// Factors of the squared errors.
    importance: [f32; MAX_BLOCK],
    /// Its length in whole lanes.
    len: usize,
    /// The last candidate's codes, in steps from zero.
    steps: [f32; MAX_BLOCK],
    /// Their rounding errors, in steps, times their importance.
    rest: [f32; MAX_BLOCK],
}

impl Block {
    /// `importance` is empty where all weights are equally important.
    pub(super) fn of(weights: &[f32], importance: &[f32]) -> Self {
        let zeros = [0.0; MAX_BLOCK];
        let len = weights.len().next_multiple_of(LANES);
        let mut block = Self { weights: zeros, importance: [1.0; MAX_BLOCK], len, steps: zeros, rest: zeros };
        block.weights[..weights.len()].copy_from_slice(weights);
        block.importance[..importance.len()].copy_from_slice(importance);
        block
    }

    pub(super) fn subtract(&mut self, offset: f32) {
        self.weights[..self.len].iter_mut().for_each(|weight| *weight -= offset);
    }

    /// The plain grid: its ends are the extreme weights.
    pub(super) fn plain_grid(&self, search: Search) -> Grid {
        let Search { bits, zero_points, scale_type } = search;
        let mut candidates = Range::of(&self.weights[..self.len]).candidates(bits, zero_points);
        candidates.next().map_or(Grid::zero(bits), |Candidate { inverse, zero_point }| Grid {
            scale: scale_type.round(inverse.recip()),
            zero_point,
        })
    }

    /// The grid with the least weighted error.
    pub(super) fn best_grid(&mut self, search: Search) -> Grid {
        let Search { bits, zero_points, scale_type } = search;
        let range = Range::of(&self.weights[..self.len]);
        let mut best = Fit { error: f32::INFINITY, grid: Grid::zero(bits) };
        for mut candidate in range.candidates(bits, zero_points) {
            let stored = scale_type.round(candidate.inverse.recip()).recip();
            if stored.is_normal() {
                candidate.inverse = stored;
            }
            let fit = self.fit(candidate, (bits, scale_type), range.magnitude());
            if fit.error < best.error {
                best = fit;
            }
        }
        best.grid
    }

    /// Rounds to the candidate's codes, and finds the scale that these codes fit best with, as it can be stored.
    ///
    /// Sums are of what the codes leave and not of the weights: with eight bits, the error is too small a difference
    /// between the latter. There is a loop for each, because the compiler ties sums over one loop in knots.
    fn fit(
        &mut self,
        Candidate { inverse, zero_point }: Candidate,
        (bits, scale_type): (Bits, ScaleType),
        magnitude: f32,
    ) -> Fit {
        let [lowest, highest] = ends(zero_point, bits);
        let places = self.steps[..self.len].iter_mut().zip(&mut self.rest);
        let mut unweighted = [0.0; MAX_BLOCK];
        for (((weight, importance), (steps, rest)), unweighted) in
            self.weights.iter().zip(&self.importance).zip(places).zip(&mut unweighted)
        {
            let scaled = weight * inverse;
            *steps = round(within(scaled, lowest, highest));
            *unweighted = scaled - *steps;
            *rest = *unweighted * importance;
        }
        let (steps, rest) = (&self.steps[..self.len], &self.rest[..self.len]);
        let rest_by_steps = dot(rest, steps);
        let steps_by_steps = weighted_square(steps, &self.importance[..self.len]);
        let refit = if steps_by_steps > 0.0 { rest_by_steps / steps_by_steps } else { 0.0 };
        let squares = dot(rest, &unweighted[..self.len]);
        let scale = scale_type.round((1.0 + refit) / inverse);
        // In steps: how much the stored scale differs from the best one.
        let rounding = scale * inverse - (1.0 + refit);
        // Rounding may leave less than nothing where the codes fit exactly.
        let error = (squares - refit * rest_by_steps + rounding * rounding * steps_by_steps).max(0.0);
        Fit { error: error / (inverse * magnitude).powi(2), grid: Grid { scale, zero_point } }
    }

    /// Codes of the weights, and of the zeros behind them.
    pub(super) fn codes(&self, grid: Grid, bits: Bits) -> [u8; MAX_BLOCK] {
        let inverse = grid.inverse();
        let [lowest, highest] = ends(grid.zero_point, bits);
        let mut codes = [grid.zero_point; MAX_BLOCK];
        for (code, weight) in codes.iter_mut().zip(&self.weights[..self.len]) {
            *code = low_byte(round(within(weight * inverse, lowest, highest)) + f32::from(grid.zero_point));
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

/// The sum of `factors` times the squares of `values`, of whole lanes.
fn weighted_square(values: &[f32], factors: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (values, factors) in values.as_chunks::<LANES>().0.iter().zip(factors.as_chunks::<LANES>().0) {
        sums = array::from_fn(|lane| sums[lane] + values[lane] * values[lane] * factors[lane]);
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
