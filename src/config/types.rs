//! Types of settings that only the configuration defines.

use std::{
    fmt,
    num::NonZeroUsize,
    ops::Deref,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The text is not one of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value")]
pub struct UnknownValue;

/// Handling of a request's unknown fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// The request is refused, and the error names the field.
    #[default]
    Refuse,
    /// The field is ignored, and a response header names it.
    Warn,
}

impl FromStr for UnknownFields {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "warn" => Ok(Self::Warn),
            _ => Err(UnknownValue),
        }
    }
}

/// How the weights of an export are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    /// Unquantized.
    None,
    /// 8 bits per weight.
    Int8,
    /// 4 bits per weight.
    Int4,
}

impl FromStr for Quantize {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        match text {
            "none" | "float32" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(UnknownValue),
        }
    }
}

/// Number of weights that share a scale: 32, 64 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightBlock(NonZeroUsize);

impl WeightBlock {
    /// `None` unless `weights` is 32, 64 or 128.
    #[must_use]
    pub fn new(weights: usize) -> Option<Self> {
        NonZeroUsize::new(weights).filter(|n| [32, 64, 128].contains(&n.get())).map(Self)
    }

    /// The number of weights.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0.get()
    }
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownValue),
        }
    }
}

/// Text that neither logs nor errors may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The directory for exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDir {
    path: PathBuf,
    is_default: bool,
}

impl CacheDir {
    /// A directory that the user configured.
    #[must_use]
    pub const fn configured(path: PathBuf) -> Self {
        Self { path, is_default: false }
    }

    /// The platform's default.
    #[must_use]
    pub const fn default_at(path: PathBuf) -> Self {
        Self { path, is_default: true }
    }

    /// Whether it is the default. Its owner and mode are checked then; a configured directory is trusted.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.is_default
    }
}

impl Deref for CacheDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// Allowed names in `Host`, in addition to those of private networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Any name.
    Any,
    /// Names in lower case, without ports.
    List(Vec<String>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl FromStr for Hosts {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "-._".contains(c));
        Ok(list(text, is_name)?.map_or(Self::Any, Self::List))
    }
}

/// Allowed origins of web pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any origin.
    Any,
    /// Origins in lower case.
    List(Vec<String>),
}

impl Default for Origins {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl FromStr for Origins {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        Ok(list(text, is_origin)?.map_or(Self::Any, Self::List))
    }
}

/// Items separated by commas, in lower case; `None` for `*`.
fn list(text: &str, is_valid: impl Fn(&str) -> bool) -> Result<Option<Vec<String>>, UnknownValue> {
    let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items == ["*"] {
        return Ok(None);
    }
    if items.is_empty() || !items.iter().all(|item| is_valid(item)) {
        return Err(UnknownValue);
    }
    Ok(Some(items.iter().map(|item| item.to_ascii_lowercase()).collect()))
}

/// Whether a browser could send this as `Origin`: a scheme and an authority, without a path.
fn is_origin(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    text.split_once("://").is_some_and(|(scheme, authority)| {
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        is_scheme && !authority.is_empty() && authority.chars().all(is_name)
    })
}
