//! Lengths of prompts and answers: a number or a distribution.

use std::{fmt, str::FromStr};

use rand::{Rng, RngExt};
use rand_distr::{Distribution, Exp1, LogNormal, Normal};

/// Longest length.
const MAX_LENGTH: f64 = 1_000_000.0;

/// Lengths in tokens or words; always 1 or more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Uniform between the two, both included.
    Uniform(u32, u32),
    /// Mean and standard deviation.
    Normal(f64, f64),
    /// Median, and standard deviation of the logarithm: a few lengths are much longer, like real prompts.
    LogNormal(f64, f64),
    /// Mean.
    Exponential(f64),
}

impl Lengths {
    /// A random length.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a million")]
    pub fn sample(self, random: &mut impl Rng) -> u32 {
        let length = match self {
            Self::Fixed(length) => return length,
            Self::Uniform(min, max) => return random.random_range(min..=max),
            Self::Normal(mean, deviation) => Normal::new(mean, deviation).map(|n| n.sample(random)),
            Self::LogNormal(median, sigma) => LogNormal::new(median.ln(), sigma).map(|n| n.sample(random)),
            Self::Exponential(mean) => {
                let unit: f64 = Exp1.sample(random);
                Ok(mean * unit)
            }
        };
        length.unwrap_or(1.0).round().clamp(1.0, MAX_LENGTH) as u32
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or(("fixed", text));
        let numbers: Option<Vec<f64>> = rest.split(['-', ',']).map(|n| n.trim().parse().ok()).collect();
        let numbers = numbers.unwrap_or_default();
        let is_length = |n: f64| (1.0..=MAX_LENGTH).contains(&n);
        let is_spread = |n: f64| n.is_finite() && n >= 0.0;
        match (kind, &numbers[..]) {
            ("fixed", &[n]) if is_length(n) => Ok(Self::Fixed(whole(n)?)),
            ("uniform", &[a, b]) if is_length(a) && is_length(b) && a <= b => {
                Ok(Self::Uniform(whole(a)?, whole(b)?))
            }
            ("normal", &[mean, deviation]) if is_length(mean) && is_spread(deviation) => {
                Ok(Self::Normal(mean, deviation))
            }
            ("lognormal", &[median, sigma]) if is_length(median) && is_spread(sigma) => {
                Ok(Self::LogNormal(median, sigma))
            }
            ("exponential", &[mean]) if is_length(mean) => Ok(Self::Exponential(mean)),
            _ => Err(format!(
                "invalid length {text:?}; expected 128, uniform:64-256, normal:128,32 (mean, deviation), \
                 lognormal:128,0.8 (median, deviation of the logarithm) or exponential:128 (mean), from 1 to {MAX_LENGTH}"
            )),
        }
    }
}

fn whole(n: f64) -> Result<u32, String> {
    format!("{n}").parse().map_err(|_| format!("{n} is not a whole number"))
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform(a, b) => write!(f, "uniform:{a}-{b}"),
            Self::Normal(mean, deviation) => write!(f, "normal:{mean},{deviation}"),
            Self::LogNormal(median, sigma) => write!(f, "lognormal:{median},{sigma}"),
            Self::Exponential(mean) => write!(f, "exponential:{mean}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn sampled(text: &str) -> Vec<f64> {
        let lengths: Lengths = text.parse().unwrap();
        assert_eq!(lengths.to_string(), text);
        let mut random = StdRng::seed_from_u64(1);
        (0..20_000).map(|_| f64::from(lengths.sample(&mut random))).collect()
    }

    #[test]
    fn each_distribution_has_the_requested_mean() {
        #[expect(clippy::cast_precision_loss, reason = "twenty thousand")]
        let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
        for (text, expected) in [
            ("100", 100.0),
            ("uniform:50-150", 100.0),
            ("normal:100,10", 100.0),
            ("exponential:100", 100.0),
            ("lognormal:100,0.5", 100.0 * f64::exp(0.125)),
        ] {
            let samples = sampled(text);
            let got = mean(&samples);
            assert!((got / expected - 1.0).abs() < 0.03, "{text}: {got}");
            assert!(samples.iter().all(|n| *n >= 1.0));
        }
        let uniform = sampled("uniform:3-5");
        assert!(
            [3.0, 4.0, 5.0].iter().all(|n| uniform.contains(n))
                && uniform.iter().all(|n| (3.0..=5.0).contains(n))
        );
    }

    #[test]
    fn an_invalid_length_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "1.5",
            "uniform:9-3",
            "normal:10",
            "normal:0,1",
            "poisson:3",
            "nan",
            "lognormal:9,inf",
        ] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}
