//! Sampling parameters: flags of `eka generate`, and the chat's `/set`.

use std::{fmt::Display, str::FromStr};

use crate::job::{Sampling, SamplingDefaults};

/// Sampling and stop conditions.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub(super) struct SamplingArgs {
    /// Maximum number of tokens to generate [default: engine.default_max_new_tokens]
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    pub(super) max_new_tokens: Option<usize>,

    /// Sampling temperature; 0 always takes the most probable token [default: the model's, else 0]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,

    /// Sample only from the K most probable tokens; 0 disables it [default: the model's, else 0]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Sample only from the most probable tokens whose probabilities sum to P [default: the model's, else 1]
    #[arg(long, value_name = "P", value_parser = share)]
    top_p: Option<f32>,

    /// Sample only from tokens at least P times as probable as the most probable one; 0 disables it [default: the model's, else 0]
    #[arg(long, value_name = "P", value_parser = fraction)]
    min_p: Option<f32>,

    /// Factor that makes earlier tokens less likely; 1 disables it [default: the model's, else 1]
    #[arg(long, value_name = "X", value_parser = penalty)]
    repetition_penalty: Option<f32>,

    /// Seed of the sampler [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Stop before this text; can be repeated
    #[arg(long, value_name = "TEXT", value_parser = text)]
    pub(super) stop: Vec<String>,
}

/// Parameters of `/set`.
pub(super) const NAMES: [&str; 8] =
    ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop"];

impl SamplingArgs {
    /// Parameters of one job, with a random seed unless one is set. `defaults` are those of the model.
    pub(super) fn sampling(&self, defaults: SamplingDefaults) -> Sampling {
        let greedy = Sampling::greedy();
        Sampling {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(greedy.temperature),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(greedy.top_k),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(greedy.top_p),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(greedy.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(greedy.repetition_penalty),
            seed: self.seed.unwrap_or_else(rand::random),
            ..greedy
        }
    }

    /// Changes one of [`NAMES`]; `none` removes an optional value.
    ///
    /// # Errors
    /// A message when the name is unknown or the value invalid.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let refused = |why| format!("{name} is {value:?}: {why}");
        let set = match name {
            "max_new_tokens" => optional(value, count).map(|tokens| self.max_new_tokens = tokens),
            "temperature" => optional(value, temperature).map(|t| self.temperature = t),
            "top_k" => optional(value, |value| parse(value, "expected a whole number, 0 or more, or none"))
                .map(|k| self.top_k = k),
            "top_p" => optional(value, share).map(|p| self.top_p = p),
            "min_p" => optional(value, fraction).map(|p| self.min_p = p),
            "repetition_penalty" => optional(value, penalty).map(|x| self.repetition_penalty = x),
            "seed" => optional(value, |value| parse(value, "expected a whole number, 0 or more, or none"))
                .map(|seed| self.seed = seed),
            "stop" => optional(value, text).map(|stop| self.stop = stop.into_iter().collect()),
            _ => return Err(format!("unknown parameter {name:?}; expected one of {}", NAMES.join(", "))),
        };
        set.map_err(refused)
    }

    /// One line per parameter.
    pub(super) fn lines(&self) -> Vec<String> {
        let or_none = |value: Option<&dyn Display>| value.map_or("none".into(), ToString::to_string);
        let stop = self.stop.iter().map(|stop| format!("{stop:?}")).collect::<Vec<_>>().join(" ");
        let values = [
            or_none(self.max_new_tokens.as_ref().map(|n| n as _)),
            or_none(self.temperature.as_ref().map(|t| t as _)),
            or_none(self.top_k.as_ref().map(|k| k as _)),
            or_none(self.top_p.as_ref().map(|p| p as _)),
            or_none(self.min_p.as_ref().map(|p| p as _)),
            or_none(self.repetition_penalty.as_ref().map(|x| x as _)),
            or_none(self.seed.as_ref().map(|n| n as _)),
            if stop.is_empty() { "none".into() } else { stop },
        ];
        NAMES.iter().zip(values).map(|(name, value)| format!("{name:<20}{value}")).collect()
    }
}

fn optional<T>(value: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if value == "none" { Ok(None) } else { read(value).map(Some) }
}

fn parse<T: FromStr>(value: &str, expected: &str) -> Result<T, String> {
    value.trim().parse().map_err(|_| expected.to_owned())
}

fn within(value: &str, expected: &str, is: impl FnOnce(f32) -> bool) -> Result<f32, String> {
    let number = parse::<f32>(value, expected)?;
    if number.is_finite() && is(number) { Ok(number) } else { Err(expected.to_owned()) }
}

fn temperature(value: &str) -> Result<f32, String> {
    within(value, "expected a number, 0 or more", |t| t >= 0.0)
}

fn share(value: &str) -> Result<f32, String> {
    within(value, "expected a number more than 0, at most 1", |p| p > 0.0 && p <= 1.0)
}

fn fraction(value: &str) -> Result<f32, String> {
    within(value, "expected a number from 0 to 1", |p| (0.0..=1.0).contains(&p))
}

fn penalty(value: &str) -> Result<f32, String> {
    within(value, "expected a number more than 0", |x| x > 0.0)
}

fn count(value: &str) -> Result<usize, String> {
    let expected = "expected a whole number, 1 or more";
    parse(value, expected).and_then(|n| if n > 0 { Ok(n) } else { Err(expected.to_owned()) })
}

fn text(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("expected text that is not empty".into()) } else { Ok(value.to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        wanted: SamplingArgs,
    }

    fn wanted() -> SamplingArgs {
        Command::parse_from(["test"]).wanted
    }

    #[test]
    fn every_parameter_can_be_set_and_shown() {
        let mut wanted = wanted();
        for name in NAMES {
            let value = if name == "stop" { "x" } else { "1" };
            assert_eq!(wanted.set(name, value), Ok(()), "{name}");
        }
        let values: Vec<_> =
            wanted.lines().iter().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect();
        assert_eq!(values, ["1", "1", "1", "1", "1", "1", "1", "\"x\""]);
    }

    #[test]
    fn an_invalid_value_changes_nothing_and_is_named() {
        let mut wanted = wanted();
        let before = wanted.clone();
        for (name, value) in [
            ("temperature", "-1"),
            ("temperature", "NaN"),
            ("temperature", "inf"),
            ("top_p", "0"),
            ("min_p", "2"),
            ("top_k", "-1"),
            ("repetition_penalty", "0"),
            ("seed", "x"),
            ("max_new_tokens", "0"),
            ("stop", ""),
            ("heat", "1"),
        ] {
            let refused = wanted.set(name, value).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
        assert_eq!(wanted, before);
    }
}
