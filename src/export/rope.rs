//! Rotary positions: which angle each pair of a head's dimensions turns by at each position.
//!
//! The angles are constants of the graph, so they are computed here once, in single precision and in the order that
//! transformers computes them in. A cosine of position 100,000 is sensitive to the last bit of its frequency: computing
//! "better", in double precision, would be a different model from the one that was trained.

use std::ops::Range;

use super::json_config::{JsonConfig, JsonConfigError};

/// The rope types that [`Rotary::read`] accepts, as an error names them.
const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// transformers' default for `rope_theta`.
pub(super) const DEFAULT_THETA: f32 = 10_000.0;

const ORIGINAL: &str = "original_max_position_embeddings";

/// Rotary positions of a head, or of its first dimensions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rotary {
    pub theta: f32,
    /// Dimensions of a head that turn; an even number.
    pub dims: usize,
    pub scaling: Scaling,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    /// Not at all. Dynamic NTK scaling is this as well, for contexts up to `max_position_embeddings`.
    None,
    Linear {
        factor: f32,
    },
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: f32,
    },
    /// Pairs up to `first` keep their frequency, from `last` on it is divided by `factor`, gradually between.
    Yarn {
        factor: f32,
        first: f64,
        last: f64,
        attention_factor: f32,
    },
    /// A divisor for each pair, for contexts up to `original_context`.
    Long {
        divisors: Vec<f32>,
        attention_factor: f32,
        original_context: usize,
    },
}

/// What position is multiplied with to give the angle of each pair, and what cosines and sines are multiplied with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angles {
    pub frequencies: Vec<f32>,
    pub factor: f32,
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Cosine,
    Sine,
}

impl Rotary {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4), for heads of
    /// `head_dim` dimensions.
    pub(super) fn read(config: &JsonConfig, head_dim: usize) -> Result<Self, JsonConfigError> {
        let rope = match config.section("rope_parameters")? {
            Some(section) => Some(section),
            None => config.section("rope_scaling")?,
        };
        let theta = config.optional_positive("rope_theta")?.unwrap_or(DEFAULT_THETA);
        Self::read_section(config, rope.as_ref(), theta, head_dim)
    }

    /// Reads one section; `theta` is the default of its base. Without a section, nothing is scaled.
    pub(super) fn read_section(
        config: &JsonConfig,
        rope: Option<&JsonConfig>,
        theta: f32,
        head_dim: usize,
    ) -> Result<Self, JsonConfigError> {
        const PARTIAL: &str = "partial_rotary_factor";
        let theta = match rope {
            Some(rope) => rope.optional_positive("rope_theta")?.unwrap_or(theta),
            None => theta,
        };
        let partial = match rope {
            Some(rope) if rope.get(PARTIAL).is_some() => rope,
            _ => config,
        };
        let share = partial.optional_positive(PARTIAL)?.unwrap_or(1.0);
        if share > 1.0 {
            return Err(partial.wrong(PARTIAL, "a share of at most 1"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a size")]
        let dims = (head_dim as f64 * f64::from(share)) as usize;
        // ONNX Runtime turns pairs eight at a time.
        if dims == 0 || !dims.is_multiple_of(16) {
            let supported =
                format!("a share of the {head_dim} dimensions of a head that is a multiple of 16");
            return Err(partial.unsupported(PARTIAL, supported));
        }
        let scaling = match rope {
            Some(rope) => Scaling::read(config, rope, theta, dims)?,
            None => Scaling::None,
        };
        Ok(Self { theta, dims, scaling })
    }

    /// Pairs of dimensions that turn.
    pub(super) const fn pairs(&self) -> usize {
        self.dims / 2
    }

    /// Positions that these angles are meant for.
    pub(super) const fn reach(&self) -> usize {
        match self.scaling {
            Scaling::Long { original_context, .. } => original_context,
            _ => usize::MAX,
        }
    }

    pub(super) fn angles(&self) -> Angles {
        let default = |pair: usize| self.theta.powf((2 * pair) as f32 / self.dims as f32);
        let frequencies = (0..self.pairs()).map(|pair| self.scaling.frequency(pair, default(pair))).collect();
        let factor = match self.scaling {
            Scaling::Yarn { attention_factor, .. } | Scaling::Long { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        Angles { frequencies, factor }
    }
}

impl Scaling {
    fn read(
        config: &JsonConfig,
        rope: &JsonConfig,
        theta: f32,
        dims: usize,
    ) -> Result<Self, JsonConfigError> {
        let field = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        match rope.text(field)?.unwrap_or("default") {
            // Dynamic scaling begins beyond `max_position_embeddings`, which no context here exceeds.
            "default" | "dynamic" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: rope.positive("factor")? }),
            "llama3" => Self::read_llama3(config, rope),
            "yarn" => Self::read_yarn(config, rope, theta, dims),
            // Phi-3 was published with the older names.
            "longrope" | "su" => Self::read_long(config, rope, dims),
            _ => Err(rope.unsupported(field, SUPPORTED)),
        }
    }

    fn read_llama3(config: &JsonConfig, rope: &JsonConfig) -> Result<Self, JsonConfigError> {
        let low_freq_factor = rope.positive("low_freq_factor")?;
        let high_freq_factor = rope.positive("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            return Err(
                rope.wrong("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}"))
            );
        }
        let factor = rope.positive("factor")?;
        let original_context = original_context(config, rope)? as f32;
        Ok(Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context })
    }

    /// YaRN (<https://arxiv.org/abs/2309.00071>): the pair that turns `beta` times over the original context is where
    /// the change begins or ends.
    fn read_yarn(
        config: &JsonConfig,
        rope: &JsonConfig,
        theta: f32,
        dims: usize,
    ) -> Result<Self, JsonConfigError> {
        let original = original_context(config, rope)?;
        let factor = stretch(config, rope, original)?;
        let pair_of = |turns: f32| {
            let base = f64::from(theta).ln();
            dims as f64 * (original as f64 / (f64::from(turns) * std::f64::consts::TAU)).ln() / (2.0 * base)
        };
        let mut first = pair_of(rope.optional_positive("beta_fast")?.unwrap_or(32.0));
        let mut last = pair_of(rope.optional_positive("beta_slow")?.unwrap_or(1.0));
        if rope.flag("truncate", true)? {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, mut last) = (first.max(0.0), last.min((dims - 1) as f64));
        if first == last {
            last += 0.001;
        }
        let magnitude =
            |factor: f32, share: f32| if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 };
        let shares = (rope.optional_positive("mscale")?, rope.optional_positive("mscale_all_dim")?);
        let attention_factor = match (rope.optional_positive("attention_factor")?, shares) {
            (Some(stated), _) => stated,
            (None, (Some(share), Some(all))) => magnitude(factor, share) / magnitude(factor, all),
            _ => magnitude(factor, 1.0),
        };
        Ok(Self::Yarn { factor, first, last, attention_factor })
    }

    /// LongRoPE (<https://arxiv.org/abs/2402.13753>) has one list of divisors for contexts up to the original one, and
    /// another beyond. A graph has one table, so its context ends there: see [`Rotary::reach`].
    fn read_long(config: &JsonConfig, rope: &JsonConfig, dims: usize) -> Result<Self, JsonConfigError> {
        const DIVISORS: &str = "short_factor";
        let divisors = rope.positives(DIVISORS)?;
        if divisors.len() != dims / 2 {
            return Err(rope.wrong(DIVISORS, format!("{} numbers, one for each pair", dims / 2)));
        }
        let original = original_context(config, rope)?;
        let factor = stretch(config, rope, original)?;
        let attention_factor = match rope.optional_positive("attention_factor")? {
            Some(stated) => stated,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f32).ln()).sqrt(),
        };
        Ok(Self::Long { divisors, attention_factor, original_context: original })
    }

    /// The frequency of a pair whose wave is `period` positions long, in radians.
    fn frequency(&self, pair: usize, period: f32) -> f32 {
        let frequency = 1.0 / period;
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Long { ref divisors, .. } => 1.0 / (divisors[pair] * period),
            Self::Yarn { factor, first, last, .. } => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "transformers computes in single precision too"
                )]
                let stretched = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0) as f32;
                let kept = 1.0 - stretched;
                1.0 / (factor * period) * (1.0 - kept) + frequency * kept
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                // Waves longer than the original context are stretched by `factor`, short ones are kept, and between
                // the two limits the change is gradual.
                let wavelength = std::f32::consts::TAU / frequency;
                if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_context / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// The context length before the scaling. Beside the section it counts more than within, as in transformers.
fn original_context(config: &JsonConfig, rope: &JsonConfig) -> Result<usize, JsonConfigError> {
    match config.optional_size(ORIGINAL)?.or(rope.optional_size(ORIGINAL)?) {
        Some(original) => Ok(original),
        None => config.size("max_position_embeddings"),
    }
}

/// How many times longer the context is than the original one.
fn stretch(config: &JsonConfig, rope: &JsonConfig, original: usize) -> Result<f32, JsonConfigError> {
    match rope.optional_positive("factor")? {
        Some(factor) => Ok(factor),
        None => Ok(config.size("max_position_embeddings")? as f32 / original as f32),
    }
}

impl Table {
    /// The table's rows for `positions`: shape `[positions, pairs]`, row by row.
    pub(super) fn rows(self, angles: &Angles, positions: Range<usize>) -> Vec<f32> {
        let function = match self {
            Self::Cosine => f32::cos,
            Self::Sine => f32::sin,
        };
        positions
            .flat_map(|position| {
                angles
                    .frequencies
                    .iter()
                    .map(move |frequency| function(position as f32 * frequency) * angles.factor)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(json: &str) -> Result<Rotary, JsonConfigError> {
        Rotary::read(&JsonConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap(), 16)
    }

    const LLAMA3: Scaling =
        Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64.0 };

    #[test]
    fn both_styles_of_transformers_say_the_same() {
        let new = r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let old = r#"{"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let expected = Rotary { theta: 500_000.0, dims: 16, scaling: LLAMA3 };
        assert_eq!(read(new).unwrap(), expected);
        assert_eq!(read(old).unwrap(), expected);
    }

    #[test]
    fn without_any_setting_the_base_is_ten_thousand() {
        let default = Rotary { theta: 10_000.0, dims: 16, scaling: Scaling::None };
        assert_eq!(read("{}").unwrap(), default);
        assert_eq!(read(r#"{"rope_scaling": null, "rope_theta": 10000}"#).unwrap(), default);
    }

    #[test]
    fn another_rope_type_is_refused_by_name_with_the_supported_ones() {
        let message = read(r#"{"rope_scaling": {"type": "spiral", "factor": 4}}"#).unwrap_err().to_string();
        assert!(message.contains("rope_scaling.type is \"spiral\""), "{message}");
        assert!(message.contains(SUPPORTED), "{message}");
    }

    #[test]
    fn llama3_keeps_short_waves_stretches_long_ones_and_blends_between() {
        let rotary = Rotary { theta: 500_000.0, dims: 16, scaling: LLAMA3 };
        let plain = Rotary { theta: 500_000.0, dims: 16, scaling: Scaling::None }.angles().frequencies;
        let scaled = rotary.angles().frequencies;
        // Wavelengths: 6.3 (below 64/4), 32.4 (between), 167 and longer (above 64/1).
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[1] - 0.079_403_01).abs() < 1e-7, "{}", scaled[1]);
        for pair in 2..8 {
            assert_eq!(scaled[pair], plain[pair] / 8.0);
        }
    }

    #[test]
    fn the_first_position_does_not_turn() {
        let angles = Angles { frequencies: vec![1.0, 0.1], factor: 1.0 };
        assert_eq!(Table::Cosine.rows(&angles, 0..1), [1.0, 1.0]);
        assert_eq!(Table::Sine.rows(&angles, 0..2), [0.0, 0.0, 1f32.sin(), 0.1f32.sin()]);
    }
}
