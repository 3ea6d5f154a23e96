//! Rotary positions: which angle each pair of a head's dimensions turns by at each position.
//!
//! The angles are constants of the graph, so they are computed here once, in single precision and in the order that
//! transformers computes them in. A cosine of position 100,000 is sensitive to the last bit of its frequency: computing
//! "better", in double precision, would be a different model from the one that was trained.

use std::{iter, ops::Range};

use serde_json::Value;

use super::json_config::{JsonConfig, JsonConfigError};
use crate::manifest::MAX_DIMENSION;

/// The rope types that [`Rotary::read`] accepts, as an error names them.
const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn, longrope";

const ORIGINAL: &str = "original_max_position_embeddings";

const PARTIAL: &str = "partial_rotary_factor";

/// Rotary positions of a head, or of its first dimensions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rotary {
    pub theta: f32,
    /// Dimensions of a head that are rotated; an even number.
    pub dims: usize,
    /// Whether the two dimensions of a pair are stored side by side, and not half of `dims` apart.
    pub interleaved: bool,
    /// Whether pairs turn the other way.
    pub is_reversed: bool,
    /// Pairs after the rotated ones that the tables have too, and that do not turn.
    pub still_pairs: usize,
    pub scaling: Scaling,
}

/// Whether a share of a head's dimensions can be rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partial {
    /// A share in the configuration counts.
    Supported,
    /// transformers ignores it where other programs do not, so it is an error.
    Refused,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    /// No change. Dynamic NTK scaling changes nothing either, for contexts up to `max_position_embeddings`.
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
        original_context: usize,
    },
    /// The first `turning` pairs, whose frequencies are those of all pairs divided by `factor`; the others do not turn.
    Proportional {
        turning: usize,
        factor: f32,
    },
    /// The base is multiplied by a power of `alpha`: NTK-aware scaling for one length.
    NtkAlpha {
        alpha: f32,
    },
    /// A divisor for each pair: `short` for contexts up to `original_context`, `long` beyond.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        is_long: bool,
        attention_factor: f32,
        original_context: usize,
    },
}

/// The frequency of each pair that turns, in radians per position, and the factor of their cosines and sines.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angles {
    pub frequencies: Vec<f32>,
    pub still_pairs: usize,
    pub factor: f32,
    /// The position of a table's first row.
    pub start: usize,
}

/// Sines and cosines that are added to embeddings, as in "Attention Is All You Need".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sinusoid {
    /// Dimensions of the embedding, half of them sines.
    pub dims: usize,
    /// The position that the first token has.
    pub start: usize,
}

impl Sinusoid {
    pub(super) fn angles(self) -> Angles {
        let half = self.dims / 2;
        #[expect(clippy::cast_possible_truncation, reason = "transformers computes in single precision too")]
        let step = (10_000f64.ln() / (half.max(2) - 1) as f64) as f32;
        let frequencies = (0..half).map(|pair| (pair as f32 * -step).exp()).collect();
        Angles { frequencies, still_pairs: 0, factor: 1.0, start: self.start }
    }
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
    pub(super) fn read(
        config: &JsonConfig,
        head_dim: usize,
        partial: Partial,
    ) -> Result<Self, JsonConfigError> {
        Self::read_section(config, section(config)?.as_ref(), (head_dim, partial))
    }

    /// Reads one section, and what it leaves out beside it. Without a section, nothing is scaled.
    pub(super) fn read_section(
        config: &JsonConfig,
        rope: Option<&JsonConfig>,
        (head_dim, partial): (usize, Partial),
    ) -> Result<Self, JsonConfigError> {
        const THETA: &str = "rope_theta";
        let within = |field| rope.filter(|rope| rope.get(field).is_some()).unwrap_or(config);
        let theta = within(THETA).positive(THETA)?;
        let dims = rotated(within(PARTIAL), (head_dim, partial))?;
        let scaling = match rope {
            Some(rope) => Scaling::read(config, rope, theta, dims)?,
            None => Scaling::None,
        };
        Ok(Self { theta, dims, interleaved: false, is_reversed: false, still_pairs: 0, scaling })
    }

    /// Pairs of dimensions in the tables.
    pub(super) const fn pairs(&self) -> usize {
        self.dims / 2 + self.still_pairs
    }

    /// Positions that these angles are for, where the configuration says `most`: the context that an export has by default,
    /// and the longest that it can have.
    pub(super) fn context(&self, most: usize) -> [usize; 2] {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is limited"
        )]
        let times = |length: usize, factor: f32| {
            ((length as f64 * f64::from(factor)) as usize).clamp(1, MAX_DIMENSION)
        };
        match self.scaling {
            Scaling::Linear { factor } => [most.max(times(most, factor)); 2],
            Scaling::Yarn { factor, original_context, .. } => [most.max(times(original_context, factor)); 2],
            Scaling::Long { original_context, .. } => [most.min(original_context), most],
            _ => [most; 2],
        }
    }

    /// Changes the angles to those for contexts of `positions`.
    pub(super) fn for_context(&mut self, positions: usize) {
        if let Scaling::Long { is_long, original_context, .. } = &mut self.scaling {
            *is_long = positions > *original_context;
        }
    }

    pub(super) fn angles(&self) -> Angles {
        let theta = match self.scaling {
            Scaling::NtkAlpha { alpha } => {
                let dims = self.dims as f64;
                // Python computes this base in double precision.
                f64::from(self.theta) * f64::from(alpha).powf(dims / (dims - 2.0))
            }
            _ => self.theta.into(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "transformers computes in single precision too")]
        let default = |pair: usize| (theta as f32).powf((2 * pair) as f32 / self.dims as f32);
        let direction = if self.is_reversed { -1.0 } else { 1.0 };
        let frequency = |pair: usize| direction * self.scaling.frequency(pair, default(pair));
        let frequencies = (0..self.dims / 2).map(frequency).collect();
        let factor = match self.scaling {
            Scaling::Yarn { attention_factor, .. } | Scaling::Long { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        Angles { frequencies, still_pairs: self.still_pairs, factor, start: 0 }
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
            "dynamic" if rope.get("alpha").is_some() => {
                Err(rope.unsupported("alpha", "only hunyuan_v1_dense with it"))
            }
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
        Ok(Self::Yarn { factor, first, last, attention_factor, original_context: original })
    }

    /// LongRoPE (<https://arxiv.org/abs/2402.13753>) has one list of divisors for contexts up to the original one, and
    /// another beyond. A graph has one table, so it is for one of the two: see [`Rotary::for_context`].
    fn read_long(config: &JsonConfig, rope: &JsonConfig, dims: usize) -> Result<Self, JsonConfigError> {
        let divisors = |field| {
            let divisors = rope.positives(field)?;
            let expected = || format!("{} numbers, one for each pair", dims / 2);
            if divisors.len() == dims / 2 { Ok(divisors) } else { Err(rope.wrong(field, expected())) }
        };
        let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
        let original = original_context(config, rope)?;
        let factor = stretch(config, rope, original)?;
        let attention_factor = match rope.optional_positive("attention_factor")? {
            Some(stated) => stated,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f32).ln()).sqrt(),
        };
        Ok(Self::Long { short, long, is_long: false, attention_factor, original_context: original })
    }

    /// The frequency of a pair whose wave is `period` positions long, in radians.
    fn frequency(&self, pair: usize, period: f32) -> f32 {
        let frequency = 1.0 / period;
        match *self {
            Self::None | Self::NtkAlpha { .. } => frequency,
            Self::Proportional { turning, factor } => {
                if pair < turning {
                    frequency / factor
                } else {
                    0.0
                }
            }
            Self::Linear { factor } => frequency / factor,
            Self::Long { ref short, ref long, is_long, .. } => {
                1.0 / (if is_long { long } else { short }[pair] * period)
            }
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

/// The section of rotary positions: `rope_scaling` replaces `rope_parameters`, as in transformers.
pub(super) fn section(config: &JsonConfig) -> Result<Option<JsonConfig>, JsonConfigError> {
    let scaling = config.section("rope_scaling")?.filter(|section| !section.is_empty());
    scaling.map_or_else(|| config.section("rope_parameters"), |section| Ok(Some(section)))
}

/// Dimensions of a head that are rotated: the share in `config`, all without one.
fn rotated(config: &JsonConfig, (head_dim, partial): (usize, Partial)) -> Result<usize, JsonConfigError> {
    // In double precision: a share of 0.7 of ten dimensions is seven of them.
    let share = match config.optional_positive(PARTIAL)? {
        Some(single) => config.get(PARTIAL).and_then(Value::as_f64).unwrap_or_else(|| single.into()),
        None => 1.0,
    };
    if share > 1.0 {
        return Err(config.wrong(PARTIAL, "a share of at most 1"));
    }
    if share < 1.0 && partial == Partial::Refused {
        let supported =
            "1 in this architecture (transformers ignores any other value, and other programs do not)";
        return Err(config.unsupported(PARTIAL, supported));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a size")]
    let dims = (head_dim as f64 * share) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        let supported = format!("a share of the {head_dim} dimensions of a head that is an even number");
        return Err(config.unsupported(PARTIAL, supported));
    }
    Ok(dims)
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
        let turned = |position: usize| {
            let turn =
                move |frequency: &f32| function((angles.start + position) as f32 * frequency) * angles.factor;
            angles.frequencies.iter().map(turn).chain(iter::repeat_n(function(0.0), angles.still_pairs))
        };
        positions.flat_map(turned).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn read(json: &str) -> Result<Rotary, JsonConfigError> {
        let config = JsonConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        Rotary::read(&config.or(json!({ "rope_theta": 10000.0 })), 16, Partial::Refused)
    }

    fn rotary(theta: f32, scaling: Scaling) -> Rotary {
        Rotary { theta, dims: 16, interleaved: false, is_reversed: false, still_pairs: 0, scaling }
    }

    const LLAMA3: Scaling =
        Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64.0 };

    #[test]
    fn both_styles_of_transformers_say_the_same() {
        let new = r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let old = r#"{"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let expected = rotary(500_000.0, LLAMA3);
        assert_eq!(read(new).unwrap(), expected);
        assert_eq!(read(old).unwrap(), expected);
    }

    #[test]
    fn without_any_setting_the_base_is_ten_thousand() {
        let default = rotary(10_000.0, Scaling::None);
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
        let plain = rotary(500_000.0, Scaling::None).angles().frequencies;
        let scaled = rotary(500_000.0, LLAMA3).angles().frequencies;
        // Wavelengths: 6.3 (below 64/4), 32.4 (between), 167 and longer (above 64/1).
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[1] - 0.079_403_01).abs() < 1e-7, "{}", scaled[1]);
        for pair in 2..8 {
            assert_eq!(scaled[pair], plain[pair] / 8.0);
        }
    }

    #[test]
    fn the_first_position_does_not_turn_and_neither_do_still_pairs() {
        let angles = Angles { frequencies: vec![1.0, 0.1], still_pairs: 1, factor: 2.0, start: 0 };
        assert_eq!(Table::Cosine.rows(&angles, 0..1), [2.0, 2.0, 1.0]);
        let sines = [0.0, 0.0, 0.0, 2.0 * 1f32.sin(), 2.0 * 0.1f32.sin(), 0.0];
        assert_eq!(Table::Sine.rows(&angles, 0..2), sines);
    }

    #[test]
    fn scaled_contexts_are_as_many_times_longer() {
        let context = |json: &str| read(json).unwrap().context(100);
        let of = |kind: &str, more: &str| {
            context(&format!(
                r#"{{"max_position_embeddings": 100, "rope_scaling": {{"type": "{kind}", "factor": 4.0 {more}}}}}"#
            ))
        };
        assert_eq!(of("linear", ""), [400, 400]);
        assert_eq!(of("yarn", ""), [400, 400]);
        assert_eq!(of("yarn", r#", "original_max_position_embeddings": 50"#), [200, 200]);
        assert_eq!(of("yarn", r#", "original_max_position_embeddings": 20"#), [100, 100]);
        let factors = format!(r#", "short_factor": [1{0}], "long_factor": [2{0}]"#, ", 1".repeat(7));
        assert_eq!(
            of("longrope", &format!(r#"{factors}, "original_max_position_embeddings": 20"#)),
            [20, 100]
        );
        assert_eq!(context("{}"), [100, 100]);
    }

    #[test]
    fn rope_scaling_replaces_rope_parameters() {
        let both = r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
            "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 9.0}"#;
        assert_eq!(read(both).unwrap(), rotary(9.0, Scaling::Linear { factor: 2.0 }));
        let empty = r#"{"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {}}"#;
        assert_eq!(read(empty).unwrap(), rotary(7.0, Scaling::None));
    }

    #[test]
    fn a_share_that_transformers_ignores_is_refused() {
        for json in
            [r#"{"partial_rotary_factor": 0.5}"#, r#"{"rope_parameters": {"partial_rotary_factor": 0.5}}"#]
        {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains("partial_rotary_factor is 0.5"), "{message}");
        }
        read(r#"{"partial_rotary_factor": 1.0}"#).unwrap();
    }
}
