//! Which device is to compute: a word in the settings, obeyed by whoever opens the device.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The device asked for. Spelled as `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the default.
///
/// ```
/// # use eka::choice::DeviceChoice;
/// assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
/// assert_eq!(DeviceChoice::Cuda(1).to_string(), "cuda:1");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// The first GPU where it can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number, as the driver counts them, or nothing.
    Cuda(u16),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Why a text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no device; use auto, cpu, cuda, or cuda:N with the number of a GPU")]
pub struct DeviceChoiceError {
    /// The text.
    pub word: String,
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || DeviceChoiceError { word: text.into() };
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| refused()),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_read_as_it_is_written() {
        for choice in
            [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(65_535)]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn a_word_that_is_no_device_is_refused_with_those_that_are() {
        for word in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:65536", "cpu:0", "cuda:0:1"] {
            let refused = word.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(
                refused.ends_with("is no device; use auto, cpu, cuda, or cuda:N with the number of a GPU")
            );
        }
    }
}
