//! Settings, twice: as typed, then proven.
//!
//! Four layers lie over each other: defaults, a file, environment variables, flags. What they leave is checked once,
//! against one table (`keys.rs`), and becomes a [`Config`] of plain data whose types say what was checked. Nothing
//! downstream asks again, and every mistake is reported in one go with its origin, because a server that is started
//! by a supervisor is a slow place to learn of mistakes one at a time.

mod args;
mod entry;
mod keys;
mod layers;
mod print;
mod prove;
mod raw;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

pub use self::args::ConfigArgs;
use self::{
    layers::{Merged, Surroundings},
    prove::Proof,
    raw::RawConfig,
};
use crate::{
    device_spec::{CacheChoice, Devices, Verify},
    trim_policy::TrimPolicy,
    units::{Bytes, Millis, Ratio, Tokens},
};

/// Every setting, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The HTTP server.
    pub server: Server,
    /// Who may ask.
    pub auth: Auth,
    /// What proves that this is the server; `None` is HTTP without TLS.
    pub tls: Option<Tls>,
    /// Whose pages may ask.
    pub cors: Cors,
    /// How often strangers may ask.
    pub limits: Limits,
    /// What is served.
    pub model: Model,
    /// What is served besides, and how much of it at once.
    pub models: Models,
    /// What may wait, and how long.
    pub queue: Queue,
    /// How it is computed.
    pub engine: Engine,
    /// The device's memory.
    pub device: Device,
    /// The library that computes.
    pub onnxruntime: OnnxRuntime,
    /// How long a worker may be silent.
    pub watchdog: Watchdog,
    /// When a worker that works is replaced.
    pub recycle: Recycle,
    /// What is logged.
    pub log: Log,
    /// What is told to a collector of traces.
    pub trace: Trace,
}

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port to listen on; 0 for any that is free.
    pub port: u16,
    /// How long running requests may go on after SIGTERM.
    pub grace: Millis,
    /// Time between two signs of life on a stream that waits.
    pub heartbeat: Millis,
    /// Greatest body of a request.
    pub body_limit: Bytes,
    /// What the bodies of all requests may take together; at least `body_limit`.
    pub body_memory: Bytes,
    /// Connections open at once.
    pub max_connections: NonZeroUsize,
    /// Names that requests may call it by, besides those of private networks.
    pub hosts: Hosts,
    /// What happens to fields of requests that eka does not have.
    pub unknown_fields: UnknownFields,
}

/// What happens to a field of a request that eka does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// The request is refused, and the error names the field.
    #[default]
    Refuse,
    /// The field is ignored, and a header of the answer names it.
    Warn,
}

/// Names that a server may be called by in `Host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// All of them.
    Any,
    /// These, in lower case and without ports.
    These(Vec<String>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

/// Who may ask. Without any keys, everybody may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Keys with names, limits and rights.
    pub keys_file: Option<PathBuf>,
    /// Keys with neither, as typed.
    pub keys: Option<Secret>,
    /// `/metrics` is answered without a key, though there are some.
    pub open_metrics: bool,
}

/// Text that no log and no error may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What proves that this is the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates in PEM, the server's own first.
    pub cert_file: PathBuf,
    /// Its private key in PEM.
    pub key_file: PathBuf,
}

/// Whose pages may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// The pages' origins.
    pub origins: Origins,
}

/// Origins of web pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// These, in lower case.
    These(Vec<String>),
}

impl Default for Origins {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

/// How often strangers may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// From one address; `None` is no limit.
    pub requests_per_minute_per_ip: Option<NonZeroU32>,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// An exported model, or a source directory with `base/` and perhaps `adapter/`.
    pub path: PathBuf,
    /// Its name in requests.
    pub id: String,
    /// Weights of a source directory's export.
    pub quantize: Quantize,
    /// Weights that share a scale: 32, 64 or 128. `None` leaves it to the exporter.
    pub block_size: Option<NonZeroUsize>,
    /// Where exports of source directories are kept.
    pub cache_dir: PathBuf,
    /// Whether `cache_dir` is the default. Its owner and mode are checked then; a configured directory is trusted.
    pub is_default_cache_dir: bool,
    /// How a model's files are compared with those that it was exported with.
    pub verify: Verify,
}

/// What is served besides, and how much of it at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// A directory whose subdirectories are models.
    pub dir: Option<PathBuf>,
    /// What all loaded models may hold together; `None` is half of the machine's memory.
    pub memory: Option<Bytes>,
    /// How long a model stays loaded that nobody uses; `None` is until another needs its memory.
    pub keep_alive: Option<Millis>,
}

/// How the weights of an export are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    /// Not at all: single precision.
    None,
    /// 8 bits a weight.
    Int8,
    /// 4 bits a weight.
    Int4,
}

/// What may wait, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Jobs that may wait; the next one is refused.
    pub max_jobs: NonZeroUsize,
    /// Prompt tokens of the jobs that may wait, taken together.
    pub max_prompt_tokens: Tokens,
    /// Longest wait in the queue, and that of requests that name none.
    pub timeout: Millis,
    /// Longest time from accepted to finished, and that of requests that name none; at least `timeout`.
    pub total_timeout: Millis,
    /// Interactive jobs in a row that may go before a batch job that came earlier.
    pub max_overtakes: usize,
    /// Jobs in a row for which a model may have to be loaded while one that waits has its model there.
    pub max_switches: Option<NonZeroUsize>,
}

/// How it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// What computes.
    pub devices: Devices,
    /// Threads of one worker that compute; `None` is one for each physical core, shared out among workers on the CPU.
    pub threads: Option<NonZeroUsize>,
    /// Whether the threads of a worker on the CPU are kept to physical cores of their own.
    pub pin_cores: bool,
    /// Whether operators of our own compute on the CPU where they can.
    pub own_operators: bool,
    /// What the key-value cache is stored in where they do.
    pub kv_cache: CacheChoice,
    /// Prompt tokens read at once.
    pub prefill_chunk: NonZeroUsize,
    /// Lowers the model's context length; at least 2.
    pub context_length: Option<Tokens>,
    /// Most memory of earlier prompts and answers, kept for requests that begin alike; 0 keeps none.
    pub prefix_cache: Bytes,
    /// Where prompts are saved that `/admin/cache` is told to.
    pub prefix_cache_dir: PathBuf,
    /// Whether requests with different API keys may begin with what is kept of one another's prompts.
    pub prefix_cache_shared: bool,
    /// Most tokens that are guessed and verified in one pass; 0 guesses none.
    pub draft_tokens: usize,
    /// A smaller model with the same tokens that guesses for the one of `model.path`: a directory, or the name of one in
    /// `models.dir`.
    pub draft_model: Option<PathBuf>,
    /// Most new tokens of a request that does not say.
    pub default_max_new: Tokens,
}

/// The device's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Most that a worker takes of it; `None` is all that there is.
    pub memory_limit: Option<Bytes>,
    /// When what is unused goes back.
    pub trim: TrimPolicy,
    /// Most of it that the key-value cache keeps between two requests.
    pub kv_keep: Bytes,
    /// Whether decode steps are captured as CUDA graphs on a GPU.
    pub cuda_graphs: bool,
    /// Treat the CPU's memory as a GPU's is treated: for tests of that.
    pub host_pool: bool,
}

/// The library that computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxRuntime {
    /// Where to look for it first.
    pub dir: Option<PathBuf>,
}

/// How long a worker may be silent before it is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// While it starts and loads the model.
    pub load: Millis,
    /// While it runs the model for the first time.
    pub warm_up: Millis,
    /// While it reads a chunk of a prompt, whatever its length.
    pub prefill_base: Millis,
    /// And this many times what so many tokens took lately.
    pub prefill_factor: u32,
    /// While it computes a token, whatever the last ones took.
    pub decode_floor: Millis,
    /// Or this many times what slow ones took lately.
    pub decode_factor: u32,
    /// While it is sent something.
    pub pipe: Millis,
    /// While it is idle, to answer a ping.
    pub idle: Millis,
}

/// When a worker that works is replaced all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycle {
    /// After so many jobs.
    pub after_jobs: Option<u64>,
    /// After so long.
    pub after: Option<Millis>,
    /// When it holds so much more, after a trim, than its models took.
    pub memory_growth: Bytes,
    /// After every job.
    pub between_requests: bool,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter that `tracing-subscriber` can read.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Also what clients ask. Nobody but whoever debugs a template wants that.
    pub prompts: bool,
}

/// What is told to a collector of traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The URL that takes traces by OTLP over HTTP; `None` is no traces.
    pub endpoint: Option<String>,
    /// How many of the requests are traced whose clients do not say.
    pub sample_ratio: Ratio,
    /// What the traces call this server.
    pub service_name: String,
}

/// Whether `text` can be [`Log::level`].
#[must_use]
pub fn is_log_level(text: &str) -> bool {
    prove::is_filter(text)
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}; name another file with --config, or create this one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: config::ConfigError,
    },
    /// The working directory cannot be told.
    #[error("the working directory: {0}; start eka in a directory that exists")]
    Directory(io::Error),
    /// The layers do not fit together.
    #[error("the settings do not fit together: {0}")]
    Merge(config::ConfigError),
    /// The settings as typed do not have the shape of settings.
    #[error("{path}: {message}")]
    Shape {
        /// The setting.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// Settings that do not exist, or cannot be what they are.
    #[error("{}", list(.0))]
    Settings(Vec<Problem>),
}

/// A mistake in one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such setting.
    Unknown {
        /// As it was written.
        name: String,
        /// Where it was written.
        origin: String,
        /// The setting that was perhaps meant.
        nearest: String,
    },
    /// The value cannot be used.
    Value {
        /// The setting.
        key: &'static str,
        /// Its value, as the file would say it.
        value: String,
        /// Where it was written.
        origin: String,
        /// What would do.
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

/// Every environment variable that is read, with the setting that it sets.
pub fn variables() -> impl Iterator<Item = (String, &'static str)> {
    keys::KEYS.iter().map(|key| (key.variable(), key.path))
}

/// The proven settings, with where each came from.
#[derive(Debug)]
pub struct Settings {
    /// For everything downstream.
    pub config: Config,
    merged: Merged,
}

impl Settings {
    /// Reads defaults, file, environment and flags.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read, or with everything that is wrong with the settings.
    pub fn load(args: &ConfigArgs) -> Result<Self, ConfigError> {
        Self::load_in(args, &Surroundings::of_this_process().map_err(ConfigError::Directory)?)
    }

    /// The settings as a file that gives the same ones again, each with a comment that says where it came from.
    #[must_use]
    pub fn to_toml(&self) -> String {
        print::to_toml(&self.merged)
    }

    /// The settings as an object of objects: by path, the value and where it came from.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        print::to_json(&self.merged)
    }

    /// The settings whose values differ.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        let value = |settings: &Self, path| settings.merged.get(path).map(|value| value.kind.clone());
        let paths = keys::KEYS.iter().map(|key| key.path);
        paths.filter(|path| value(self, path) != value(other, path)).collect()
    }

    fn load_in(args: &ConfigArgs, around: &Surroundings) -> Result<Self, ConfigError> {
        let mut merged = Merged::read(args, around)?;
        let raw = read_raw(&merged)?;
        let problems = std::mem::take(&mut merged.problems);
        let mut proof = Proof { merged: &merged, around, problems };
        match proof.config(&raw) {
            Some(config) if proof.problems.is_empty() => Ok(Self { config, merged }),
            _ => Err(ConfigError::Settings(proof.problems)),
        }
    }
}

fn read_raw(merged: &Merged) -> Result<RawConfig, ConfigError> {
    serde_path_to_error::deserialize(merged.root.clone())
        .map_err(|e| ConfigError::Shape { path: e.path().to_string(), message: e.inner().to_string() })
}
