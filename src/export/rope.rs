//! Rotary positions: which angle each pair of a head's dimensions turns by at each position.
//!
//! The angles are constants of the graph, so they are computed here once, in single precision and in the order that
//! transformers computes them in. A cosine of position 100,000 is sensitive to the last bit of its frequency: computing
//! "better", in double precision, would be a different model from the one that was trained.

use std::ops::Range;

use super::settings::{Settings, SettingsError};

/// The rope types that [`Rotary::read`] accepts, as an error names them.
const SUPPORTED: &str = "default, llama3";

/// transformers' default for `rope_theta`.
const DEFAULT_THETA: f32 = 10_000.0;

/// Rotary positions over the whole head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rotary {
    pub theta: f32,
    pub scaling: Scaling,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scaling {
    None,
    Llama3 { factor: f32, low_freq_factor: f32, high_freq_factor: f32, original_context: f32 },
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Cosine,
    Sine,
}

impl Rotary {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).
    pub(super) fn read(config: &Settings) -> Result<Self, SettingsError> {
        let new = config.section("rope_parameters")?;
        let rope = match new {
            Some(section) => Some(section),
            None => config.section("rope_scaling")?,
        };
        let top_theta = config.optional_positive("rope_theta")?;
        let Some(rope) = rope else {
            return Ok(Self { theta: top_theta.unwrap_or(DEFAULT_THETA), scaling: Scaling::None });
        };
        let theta = rope.optional_positive("rope_theta")?.or(top_theta).unwrap_or(DEFAULT_THETA);
        let scaling = Scaling::read(config, &rope)?;
        Ok(Self { theta, scaling })
    }

    /// What position is multiplied with to give the angle, one for each of the `head_dim / 2` pairs.
    pub(super) fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let default = |pair: usize| 1.0 / self.theta.powf((2 * pair) as f32 / head_dim as f32);
        (0..head_dim / 2).map(|pair| self.scaling.apply(default(pair))).collect()
    }
}

impl Scaling {
    fn read(config: &Settings, rope: &Settings) -> Result<Self, SettingsError> {
        let field = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        match rope.text(field)?.unwrap_or("default") {
            "default" => Ok(Self::None),
            "llama3" => Self::read_llama3(config, rope),
            _ => Err(rope.unsupported(field, SUPPORTED)),
        }
    }

    fn read_llama3(config: &Settings, rope: &Settings) -> Result<Self, SettingsError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = rope.optional_size(ORIGINAL)?.or(config.optional_size(ORIGINAL)?);
        let original =
            original.ok_or_else(|| rope.missing(ORIGINAL, "the context length before the scaling"))?;
        let low_freq_factor = rope.positive("low_freq_factor")?;
        let high_freq_factor = rope.positive("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            return Err(
                rope.wrong("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}"))
            );
        }
        let factor = rope.positive("factor")?;
        Ok(Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context: original as f32 })
    }

    /// Llama 3: waves longer than the original context are stretched by `factor`, short ones are kept, and between the
    /// two limits the change is gradual.
    fn apply(self, frequency: f32) -> f32 {
        let Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = self else {
            return frequency;
        };
        let wavelength = std::f32::consts::TAU / frequency;
        if wavelength > original_context / low_freq_factor {
            frequency / factor
        } else if wavelength < original_context / high_freq_factor {
            frequency
        } else {
            let smooth =
                (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}

impl Table {
    /// The table's rows for `positions`: shape `[positions, frequencies]`, row by row.
    pub(super) fn rows(self, frequencies: &[f32], positions: Range<usize>) -> Vec<f32> {
        let function = match self {
            Self::Cosine => f32::cos,
            Self::Sine => f32::sin,
        };
        positions
            .flat_map(|position| {
                frequencies.iter().map(move |frequency| function(position as f32 * frequency))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(json: &str) -> Result<Rotary, SettingsError> {
        Rotary::read(&Settings::parse(Path::new("config.json"), json.as_bytes()).unwrap())
    }

    const LLAMA3: Scaling =
        Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64.0 };

    #[test]
    fn both_styles_of_transformers_say_the_same() {
        let new = r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let old = r#"{"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let expected = Rotary { theta: 500_000.0, scaling: LLAMA3 };
        assert_eq!(read(new).unwrap(), expected);
        assert_eq!(read(old).unwrap(), expected);
    }

    #[test]
    fn without_any_setting_the_base_is_ten_thousand() {
        let default = Rotary { theta: 10_000.0, scaling: Scaling::None };
        assert_eq!(read("{}").unwrap(), default);
        assert_eq!(read(r#"{"rope_scaling": null, "rope_theta": 10000}"#).unwrap(), default);
    }

    #[test]
    fn another_rope_type_is_refused_by_name_with_the_supported_ones() {
        let message = read(r#"{"rope_scaling": {"type": "yarn", "factor": 4}}"#).unwrap_err().to_string();
        assert!(message.contains("rope_scaling.type is \"yarn\""), "{message}");
        assert!(message.contains("default, llama3"), "{message}");
    }

    #[test]
    fn llama3_keeps_short_waves_stretches_long_ones_and_blends_between() {
        let rotary = Rotary { theta: 500_000.0, scaling: LLAMA3 };
        let plain = Rotary { theta: 500_000.0, scaling: Scaling::None }.inverse_frequencies(16);
        let scaled = rotary.inverse_frequencies(16);
        // Wavelengths: 6.3 (below 64/4), 32.4 (between), 167 and longer (above 64/1).
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[1] - 0.079_403_01).abs() < 1e-7, "{}", scaled[1]);
        for pair in 2..8 {
            assert_eq!(scaled[pair], plain[pair] / 8.0);
        }
    }

    #[test]
    fn the_first_position_does_not_turn() {
        let frequencies = [1.0, 0.1];
        assert_eq!(Table::Cosine.rows(&frequencies, 0..1), [1.0, 1.0]);
        assert_eq!(Table::Sine.rows(&frequencies, 0..2), [0.0, 0.0, 1f32.sin(), 0.1f32.sin()]);
    }
}
