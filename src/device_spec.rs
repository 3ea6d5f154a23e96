//! What is to compute, and how: words in the settings, obeyed by whoever opens devices and models.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The device asked for. Spelled as `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the default.
///
/// ```
/// # use eka::device_spec::DeviceChoice;
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

/// How the files of a model are compared with those that it was exported with. Spelled as `size` or `hash`; `size` is the
/// default.
///
/// ```
/// # use eka::device_spec::Verify;
/// assert_eq!("hash".parse(), Ok(Verify::Hash));
/// assert!("full".parse::<Verify>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// By their lengths.
    #[default]
    Size,
    /// By their lengths and their SHA-256, for which they are read.
    Hash,
}

/// Why a text names no way to verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {word:?}; expected size or hash")]
pub struct VerifyError {
    /// The text.
    pub word: String,
}

impl FromStr for Verify {
    type Err = VerifyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "size" => Ok(Self::Size),
            "hash" => Ok(Self::Hash),
            _ => Err(VerifyError { word: text.into() }),
        }
    }
}

/// What the key-value cache is stored in on a CPU, where attention is eka's own. Spelled as `auto`, `float32`, `float16` or
/// `int8`.
///
/// ```
/// # use eka::device_spec::CacheChoice;
/// assert_eq!("int8".parse(), Ok(CacheChoice::Int8));
/// assert!("int4".parse::<CacheChoice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheChoice {
    /// float16 where the weights are quantized, else float32.
    #[default]
    Auto,
    /// As keys and values are computed.
    Float32,
    /// In half as many bytes.
    Float16,
    /// In a little more than a quarter, with scales.
    Int8,
}

impl fmt::Display for CacheChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Int8 => "int8",
        })
    }
}

/// Why a text names no format of a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no format of a key-value cache; use auto, float32, float16 or int8")]
pub struct CacheChoiceError {
    /// The text.
    pub word: String,
}

impl FromStr for CacheChoice {
    type Err = CacheChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Auto, Self::Float32, Self::Float16, Self::Int8];
        let found = all.into_iter().find(|choice| choice.to_string() == text);
        found.ok_or_else(|| CacheChoiceError { word: text.into() })
    }
}

/// The devices asked for, at least one: spelled as their names with commas in between, such as `cuda:0,cuda:1`.
///
/// Each is to have a worker of its own, so only the CPU may come more than once.
///
/// ```
/// # use eka::device_spec::Devices;
/// let both: Devices = "cuda:0,cuda:1".parse().unwrap();
/// assert_eq!(both.labels(), ["cuda:0", "cuda:1"]);
/// assert_eq!("cpu,cpu".parse::<Devices>().unwrap().labels(), ["cpu:0", "cpu:1"]);
/// assert!("cuda,cuda:0".parse::<Devices>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<DeviceChoice>);

impl Devices {
    /// All of them, in the order they were named in.
    #[must_use]
    pub fn all(&self) -> &[DeviceChoice] {
        &self.0
    }

    /// The one named first.
    #[must_use]
    pub fn first(&self) -> DeviceChoice {
        self.0.first().copied().unwrap_or_default()
    }

    /// How many of them are the CPU.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.0.iter().filter(|choice| **choice == DeviceChoice::Cpu).count()
    }

    /// A name for each that no other has: as it is written, and the CPU, where it comes more than once, with a number.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        let mut cpus = 0;
        let label = |choice: &DeviceChoice| match choice {
            DeviceChoice::Cpu if self.cpus() > 1 => {
                cpus += 1;
                format!("cpu:{}", cpus - 1)
            }
            choice => choice.to_string(),
        };
        self.0.iter().map(label).collect()
    }
}

impl From<DeviceChoice> for Devices {
    fn from(only: DeviceChoice) -> Self {
        Self(vec![only])
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, choice) in self.0.iter().enumerate() {
            write!(f, "{}{choice}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Why a text names no devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DevicesError {
    /// One of the names is none.
    #[error(transparent)]
    Word(#[from] DeviceChoiceError),
    /// `auto` among others.
    #[error("auto stands alone, as it may be any of the others; name each device, such as cuda:0,cuda:1")]
    AutoAmongOthers,
    /// A GPU twice: its two workers would only wait for one another.
    #[error("{choice} is named twice; a GPU has one worker (the CPU may come more than once)")]
    Twice {
        /// The GPU.
        choice: DeviceChoice,
    },
    /// More than anybody has.
    #[error("{count} devices are too many; the most is {MOST_DEVICES}")]
    TooMany {
        /// How many were named.
        count: usize,
    },
}

/// Most devices of one server.
pub const MOST_DEVICES: usize = 64;

impl FromStr for Devices {
    type Err = DevicesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let choices = text.split(',').map(|word| word.trim().parse()).collect::<Result<Vec<_>, _>>()?;
        if choices.len() > MOST_DEVICES {
            return Err(DevicesError::TooMany { count: choices.len() });
        }
        if choices.len() > 1 && choices.contains(&DeviceChoice::Auto) {
            return Err(DevicesError::AutoAmongOthers);
        }
        for (i, choice) in choices.iter().enumerate() {
            if *choice != DeviceChoice::Cpu && choices[..i].contains(choice) {
                return Err(DevicesError::Twice { choice: *choice });
            }
        }
        Ok(Self(choices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Devices>().unwrap_err().to_string()
    }

    #[test]
    fn a_list_is_read_as_it_is_written_and_each_of_it_has_a_name_of_its_own() {
        for text in ["auto", "cpu", "cuda:0", "cuda:0,cuda:1", "cpu,cuda:3,cpu,cpu"] {
            assert_eq!(text.parse::<Devices>().unwrap().to_string(), text);
        }
        let labels = |text: &str| text.parse::<Devices>().unwrap().labels().join(" ");
        assert_eq!(labels("cpu"), "cpu");
        assert_eq!(labels("cpu, cuda"), "cpu cuda:0");
        assert_eq!(labels("cpu,cuda:3,cpu,cpu"), "cpu:0 cuda:3 cpu:1 cpu:2");
    }

    #[test]
    fn a_list_that_cannot_be_served_is_refused_with_the_way_out() {
        assert!(refused("cpu,").contains("\"\" is no device; use auto, cpu, cuda"));
        assert!(refused("auto,cuda:1").starts_with("auto stands alone"));
        assert!(refused("auto,auto").starts_with("auto stands alone"));
        assert!(refused("cuda,cpu,cuda:0").starts_with("cuda:0 is named twice"));
        assert_eq!(refused(&["cpu"; 65].join(",")), "65 devices are too many; the most is 64");
    }

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
