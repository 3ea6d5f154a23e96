//! Types of settings that only the configuration defines.

use std::{
    fmt,
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::ValueEnum;

use crate::units::Tokens;

/// The text is not one of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value")]
pub struct UnknownValue;

/// Handling of a request's unknown fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UnknownFields {
    /// The request is rejected, and the error names the field.
    #[default]
    Refuse,
    /// The field is ignored, and a response header names it.
    Warn,
}

/// Names under which `/metrics` repeats some of eka's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MetricNames {
    /// None.
    #[default]
    Eka,
    /// vLLM's, for routers and autoscalers that read them.
    Vllm,
    /// Those of OpenTelemetry's conventions for generative AI.
    #[value(name = "gen_ai")]
    GenAi,
    /// vLLM's and OpenTelemetry's.
    All,
}

/// Longest answer of a request that sets no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLimit {
    /// What the prompt leaves of the context.
    Context,
    /// At most this many tokens.
    Tokens(Tokens),
}

impl AnswerLimit {
    /// The number of tokens; `None` for what is left of the context.
    #[must_use]
    pub const fn tokens(self) -> Option<Tokens> {
        match self {
            Self::Context => None,
            Self::Tokens(tokens) => Some(tokens),
        }
    }
}

/// Where the sampling parameters of requests that send none come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DefaultsFrom {
    /// The model's `generation_config.json`, where it has them.
    #[default]
    Model,
    /// eka's defaults.
    Eka,
}

/// Where a NATS server keeps the queue of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueStorage {
    /// On its disk.
    File,
    /// In its memory.
    Memory,
}

/// Whether a request goes to the node of a cluster that keeps the beginning of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AffinityMode {
    /// To any free node.
    Off,
    /// To that node, if it is free.
    Idle,
    /// To that node, if it is free before another one could have read the beginning.
    Worth,
}

/// What a node of a cluster does with its running requests when it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrainMode {
    /// It completes them.
    Finish,
    /// Other nodes continue them.
    HandOver,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
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

/// Further names of models, each with the model's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases(pub Vec<(String, String)>);

impl FromStr for Aliases {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        let pair = |item: &str| {
            let (alias, model) = item.split_once('=').ok_or(UnknownValue)?;
            let is_name = |name: &str| !name.is_empty() && !name.contains(char::is_whitespace);
            let (alias, model) = (alias.trim(), model.trim());
            (is_name(alias) && is_name(model))
                .then(|| (alias.to_owned(), model.to_owned()))
                .ok_or(UnknownValue)
        };
        let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        if items.is_empty() {
            return Err(UnknownValue);
        }
        items.into_iter().map(pair).collect::<Result<_, _>>().map(Self)
    }
}

/// An address that the server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address with a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Further addresses that the server listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenAddresses(pub Vec<ListenAddress>);

impl FromStr for ListenAddresses {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        let address = |item: &str| match item.strip_prefix("unix:") {
            Some("") => Err(UnknownValue),
            Some(path) => Ok(ListenAddress::Unix(path.into())),
            None => item.parse().map(ListenAddress::Tcp).map_err(|_| UnknownValue),
        };
        let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        if items.is_empty() {
            return Err(UnknownValue);
        }
        items.into_iter().map(address).collect::<Result<_, _>>().map(Self)
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
