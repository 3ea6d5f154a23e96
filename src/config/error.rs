//! Why the settings cannot be used.

use std::{fmt, io, path::PathBuf};

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}; name another file with --config, or create this one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The position and the reason.
        source: config::ConfigError,
    },
    /// The working directory does not exist.
    #[error("the working directory: {0}; start eka in a directory that exists")]
    Directory(io::Error),
    /// The layers cannot be merged.
    #[error("the settings cannot be merged: {0}")]
    Merge(config::ConfigError),
    /// Unknown settings and invalid values, all of them.
    #[error("{}", list(.0))]
    Settings(Vec<Problem>),
}

/// One mistake in the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An unknown setting.
    Unknown {
        /// As it was written.
        name: String,
        /// Where it was written.
        origin: String,
        /// The setting with the most similar name.
        nearest: String,
    },
    /// The value is invalid.
    Value {
        /// The setting.
        key: &'static str,
        /// Its value, as the file would contain it.
        value: String,
        /// Where it was written.
        origin: String,
        /// Description of valid values.
        expected: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, origin, nearest } => {
                write!(f, "{name} ({origin}) is not a setting: did you mean {nearest}?")
            }
            Self::Value { key, value, origin, expected } => {
                write!(f, "{key} is {value} ({origin}): expected {expected}")
            }
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
