//! Choices that settings, exports and workers share: device, verification, cache and weight format, pooling of embeddings.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A device. Written as `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the default.
///
/// ```
/// # use eka::device_spec::DeviceChoice;
/// assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
/// assert_eq!(DeviceChoice::Cuda(1).to_string(), "cuda:1");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// The first GPU if it can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number, as the driver counts them, without a fallback.
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

/// Why a text is not a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {word:?}; expected auto, cpu, cuda, or cuda:N with the number of a GPU")]
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

/// How the files of a model are compared with those of its export. Written as `size` or `hash`; `size` is the
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
    /// By their lengths and their SHA-256, which needs reading them.
    Hash,
}

/// Why a text is not a kind of verification.
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

/// When quantized weights are kept in the layout of eka's operators, in a file beside the graph. Written as `auto`, `always`
/// or `never`.
///
/// ```
/// # use eka::device_spec::PackedFileChoice;
/// assert_eq!("never".parse(), Ok(PackedFileChoice::Never));
/// assert!("yes".parse::<PackedFileChoice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackedFileChoice {
    /// From 64 MiB of weights on: fewer are packed in a few hundredths of a second.
    #[default]
    Auto,
    /// For all weights.
    Always,
    /// They are packed at each start.
    Never,
}

impl PackedFileChoice {
    /// Whether it applies to this many bytes of weights.
    #[must_use]
    pub const fn applies_to(self, bytes: usize) -> bool {
        match self {
            Self::Auto => bytes >= 64 << 20,
            Self::Always => bytes > 0,
            Self::Never => false,
        }
    }
}

impl fmt::Display for PackedFileChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// Why a text is not a [`PackedFileChoice`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {word:?}; expected auto, always or never")]
pub struct PackedFileChoiceError {
    /// The text.
    pub word: String,
}

impl FromStr for PackedFileChoice {
    type Err = PackedFileChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Auto, Self::Always, Self::Never].into_iter().find(|one| one.to_string() == text);
        found.ok_or_else(|| PackedFileChoiceError { word: text.into() })
    }
}

/// Number format of the key-value cache on a CPU with eka's own attention operator. Written as `auto`, `float32`, `float16` or
/// `int8`.
///
/// ```
/// # use eka::device_spec::CacheChoice;
/// assert_eq!("int8".parse(), Ok(CacheChoice::Int8));
/// assert!("int4".parse::<CacheChoice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheChoice {
    /// float16 if the weights are quantized, else float32.
    #[default]
    Auto,
    /// Full precision.
    Float32,
    /// Half the size.
    Float16,
    /// A little more than a quarter of the size, with scales.
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

/// Why a text is not a cache format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown key-value cache format {word:?}; expected auto, float32, float16 or int8")]
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

/// How the weights of a matrix are stored. Written as `none`, `int8` or `int4`.
///
/// ```
/// # use eka::device_spec::WeightFormat;
/// assert_eq!("float32".parse(), Ok(WeightFormat::Full));
/// assert_eq!(WeightFormat::Int4.to_string(), "int4");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WeightFormat {
    /// Unquantized: the largest and slowest
    #[default]
    #[value(name = "none", alias = "float32")]
    Full,
    /// 8 bits: a quarter of the size; answers rarely differ
    Int8,
    /// 4 bits: an eighth of the size; the fastest on a CPU
    Int4,
}

/// A text that is not a weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected none, int8 or int4")]
pub struct WeightFormatError;

impl FromStr for WeightFormat {
    type Err = WeightFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| WeightFormatError)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

/// Number of weights that share a scale: 32, 64 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(usize);

impl Default for BlockSize {
    fn default() -> Self {
        Self(32)
    }
}

impl BlockSize {
    /// Every size, the smallest first.
    pub const ALL: [Self; 3] = [Self(32), Self(64), Self(128)];

    /// The number of weights.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

/// A number that is not a block size.
#[derive(Debug, thiserror::Error)]
#[error("expected 32, 64 or 128")]
pub struct BlockSizeError;

impl TryFrom<usize> for BlockSize {
    type Error = BlockSizeError;

    fn try_from(weights: usize) -> Result<Self, BlockSizeError> {
        if matches!(weights, 32 | 64 | 128) { Ok(Self(weights)) } else { Err(BlockSizeError) }
    }
}

impl FromStr for BlockSize {
    type Err = BlockSizeError;

    fn from_str(text: &str) -> Result<Self, BlockSizeError> {
        text.parse::<usize>().map_err(|_| BlockSizeError)?.try_into()
    }
}

/// Bits of a weights' file for each parameter, from 4 to 9.
///
/// ```
/// # use eka::device_spec::BitBudget;
/// assert_eq!("5.5".parse::<BitBudget>().unwrap().to_string(), "5.5");
/// assert!(["", "3.9", "9.1", "many", "NaN", "inf"].iter().all(|text| text.parse::<BitBudget>().is_err()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BitBudget(f64);

/// A text that is not a budget.
#[derive(Debug, thiserror::Error)]
#[error("expected a number of bits from 4 to 9, such as 4.5")]
pub struct BitBudgetError;

impl BitBudget {
    /// The number of bits.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for BitBudget {
    type Err = BitBudgetError;

    fn from_str(text: &str) -> Result<Self, BitBudgetError> {
        let bits: f64 = text.parse().map_err(|_| BitBudgetError)?;
        if (4.0..=9.0).contains(&bits) { Ok(Self(bits)) } else { Err(BitBudgetError) }
    }
}

impl fmt::Display for BitBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One or more devices, separated by commas, such as `cuda:0,cuda:1`.
///
/// Each gets its own worker, so only the CPU may occur more than once.
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
    /// All devices in the given order.
    #[must_use]
    pub fn all(&self) -> &[DeviceChoice] {
        &self.0
    }

    /// The first device.
    #[must_use]
    pub fn first(&self) -> DeviceChoice {
        self.0.first().copied().unwrap_or_default()
    }

    /// How often the CPU occurs.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.0.iter().filter(|choice| **choice == DeviceChoice::Cpu).count()
    }

    /// A unique name for each: its text form, with a number for a CPU that occurs more than once.
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

/// Why a text is not a list of devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DevicesError {
    /// An unknown device.
    #[error(transparent)]
    Word(#[from] DeviceChoiceError),
    /// `auto` together with others.
    #[error("auto cannot be combined with other devices; name each device, as in cuda:0,cuda:1")]
    AutoAmongOthers,
    /// A GPU twice: its two workers would wait for each other.
    #[error("{choice} is given twice; a GPU has one worker (the CPU may be given more than once)")]
    Twice {
        /// The GPU.
        choice: DeviceChoice,
    },
    /// Too many devices.
    #[error("{count} devices are too many; the maximum is {MAX_DEVICES}")]
    TooMany {
        /// Their number.
        count: usize,
    },
}

/// Maximum number of devices of one server.
pub const MAX_DEVICES: usize = 64;

impl FromStr for Devices {
    type Err = DevicesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let choices = text.split(',').map(|word| word.trim().parse()).collect::<Result<Vec<_>, _>>()?;
        if choices.len() > MAX_DEVICES {
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

/// How the hidden states of a text's tokens become one embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// That of the last token, which has seen all others.
    #[default]
    Last,
    /// The mean of all.
    Mean,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Devices>().unwrap_err().to_string()
    }

    #[test]
    fn a_list_survives_its_text_form_and_has_unique_names() {
        for text in ["auto", "cpu", "cuda:0", "cuda:0,cuda:1", "cpu,cuda:3,cpu,cpu"] {
            assert_eq!(text.parse::<Devices>().unwrap().to_string(), text);
        }
        let labels = |text: &str| text.parse::<Devices>().unwrap().labels().join(" ");
        assert_eq!(labels("cpu"), "cpu");
        assert_eq!(labels("cpu, cuda"), "cpu cuda:0");
        assert_eq!(labels("cpu,cuda:3,cpu,cpu"), "cpu:0 cuda:3 cpu:1 cpu:2");
    }

    #[test]
    fn an_invalid_list_is_refused_with_the_way_out() {
        assert!(refused("cpu,").contains("unknown device \"\"; expected auto, cpu, cuda"));
        assert!(refused("auto,cuda:1").starts_with("auto cannot be combined"));
        assert!(refused("auto,auto").starts_with("auto cannot be combined"));
        assert!(refused("cuda,cpu,cuda:0").starts_with("cuda:0 is given twice"));
        assert_eq!(refused(&["cpu"; 65].join(",")), "65 devices are too many; the maximum is 64");
    }

    #[test]
    fn every_device_survives_its_text_form() {
        for choice in
            [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(65_535)]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn an_unknown_device_is_refused_with_the_valid_ones() {
        for word in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:65536", "cpu:0", "cuda:0:1"] {
            let refused = word.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(refused.ends_with("; expected auto, cpu, cuda, or cuda:N with the number of a GPU"));
        }
    }
}
