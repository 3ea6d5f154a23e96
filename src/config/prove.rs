//! From settings as typed to settings proven: every limit is checked here, and nowhere after.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use config::Value;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{
    Config, Device, Engine, Log, LogFormat, Model, Models, OnnxRuntime, Problem, Quantize, Queue, Recycle,
    Server, UnknownFields, Watchdog,
    keys::{Key, Kind},
    layers::{Merged, Surroundings},
    raw::{
        RawConfig, RawDevice, RawEngine, RawLog, RawModel, RawModels, RawOnnxRuntime, RawQueue, RawRecycle,
        RawServer, RawWatchdog,
    },
};
use crate::{
    device_spec::{Devices, DevicesError},
    trim_policy::TrimPolicyError,
    units::{Bytes, Millis, Tokens},
};

/// Checks one setting after the other and goes on after a mistake, so that all are reported at once.
pub(super) struct Proof<'a> {
    pub(super) merged: &'a Merged,
    pub(super) around: &'a Surroundings,
    pub(super) problems: Vec<Problem>,
}

impl Proof<'_> {
    /// The proven settings, unless something is added to `problems`.
    pub(super) fn config(&mut self, raw: &RawConfig) -> Option<Config> {
        let server = self.server(&raw.server);
        let auth = self.auth(&raw.auth);
        let tls = self.tls(&raw.tls);
        let cors = self.cors(&raw.cors);
        let limits = self.limits(&raw.limits);
        let model = self.model(&raw.model);
        let models = self.models(&raw.models);
        let queue = self.queue(&raw.queue);
        let engine = self.engine(&raw.engine, model.as_ref().map(|model| model.cache_dir.as_path()));
        let device = self.device(&raw.device);
        let onnxruntime = self.onnxruntime(&raw.onnxruntime);
        let watchdog = self.watchdog(&raw.watchdog);
        let recycle = self.recycle(&raw.recycle);
        let log = self.log(&raw.log);
        let trace = self.trace(&raw.trace);
        Some(Config {
            server: server?,
            auth: auth?,
            tls: tls?,
            cors: cors?,
            limits: limits?,
            model: model?,
            models: models?,
            queue: queue?,
            engine: engine?,
            device: device?,
            onnxruntime: onnxruntime?,
            watchdog: watchdog?,
            recycle: recycle?,
            log: log?,
            trace: trace?,
        })
    }

    fn server(&mut self, raw: &RawServer) -> Option<Server> {
        let bind = self.some("server.bind", raw.bind.parse().ok());
        let port = self.whole("server.port", raw.port);
        let grace = self.whole("server.grace_ms", raw.grace_ms).map(Millis);
        let heartbeat = self.whole("server.heartbeat_ms", raw.heartbeat_ms).map(Millis);
        let body_limit = self.whole("server.body_limit_bytes", raw.body_limit_bytes).map(Bytes);
        let body_memory = self.whole("server.body_memory_bytes", raw.body_memory_bytes).map(Bytes);
        if body_memory < body_limit && body_memory.is_some() {
            let origin = self.merged.origin("server.body_limit_bytes");
            let expected =
                format!("at least server.body_limit_bytes, which is {} ({origin})", raw.body_limit_bytes);
            self.refuse("server.body_memory_bytes", expected);
        }
        let max_connections = self.positive("server.max_connections", raw.max_connections);
        let hosts = self.hosts(raw.hosts.as_deref());
        let unknown_fields = match raw.unknown_fields.as_str() {
            "refuse" => Some(UnknownFields::Refuse),
            "warn" => Some(UnknownFields::Warn),
            _ => None,
        };
        let unknown_fields = self.some("server.unknown_fields", unknown_fields);
        Some(Server {
            bind: bind?,
            port: port?,
            grace: grace?,
            heartbeat: heartbeat?,
            body_limit: body_limit?,
            body_memory: body_memory?,
            max_connections: max_connections?,
            hosts: hosts?,
            unknown_fields: unknown_fields?,
        })
    }

    fn model(&mut self, raw: &RawModel) -> Option<Model> {
        let path = self.directory("model.path", &raw.path);
        let id = self.model_id(raw);
        let quantize = self.some("model.quantize", quantize(&raw.quantize));
        let block_size = self.optional(raw.block_size, Self::block_size);
        let cache_dir = match &raw.cache_dir {
            Some(dir) => self.directory("model.cache_dir", dir),
            None => Some(default_cache_dir(self.around)),
        };
        let is_default_cache_dir = raw.cache_dir.is_none();
        let verify = self.some("model.verify", raw.verify.parse().ok());
        Some(Model {
            path: path?,
            id: id?,
            quantize: quantize?,
            block_size: block_size?,
            cache_dir: cache_dir?,
            is_default_cache_dir,
            verify: verify?,
        })
    }

    fn model_id(&mut self, raw: &RawModel) -> Option<String> {
        if let Some(id) = &raw.id {
            let is_name = !id.is_empty() && !id.contains(|c: char| c.is_whitespace() || c.is_control());
            return self.some("model.id", is_name.then(|| id.clone()));
        }
        let named = directory_name(&self.around.directory.join(&raw.path));
        if named.is_none() && !raw.path.is_empty() {
            self.refuse("model.path", "a directory with a name of its own, or model.id set as well".into());
        }
        named
    }

    fn models(&mut self, raw: &RawModels) -> Option<Models> {
        let dir = self.optional(raw.dir.as_deref(), |proof, dir| proof.directory("models.dir", dir));
        let memory =
            self.optional(raw.memory_bytes, |proof, n| proof.whole("models.memory_bytes", n).map(Bytes));
        let keep_alive =
            self.optional(raw.keep_alive_ms, |proof, n| proof.whole("models.keep_alive_ms", n).map(Millis));
        Some(Models { dir: dir?, memory: memory?, keep_alive: keep_alive? })
    }

    fn recycle(&mut self, raw: &RawRecycle) -> Option<Recycle> {
        let after_jobs = self.optional(raw.after_jobs, |proof, n| proof.whole("recycle.after_jobs", n));
        let after = self.optional(raw.after_ms, |proof, n| proof.whole("recycle.after_ms", n).map(Millis));
        let memory_growth = self.whole("recycle.memory_growth_bytes", raw.memory_growth_bytes).map(Bytes);
        Some(Recycle {
            after_jobs: after_jobs?,
            after: after?,
            memory_growth: memory_growth?,
            between_requests: raw.between_requests,
        })
    }

    fn block_size(&mut self, raw: i64) -> Option<NonZeroUsize> {
        if ![32, 64, 128].contains(&raw) {
            self.refuse("model.block_size", "32, 64 or 128".into());
            return None;
        }
        self.positive("model.block_size", raw)
    }

    fn queue(&mut self, raw: &RawQueue) -> Option<Queue> {
        let max_jobs = self.positive("queue.max_jobs", raw.max_jobs);
        let max_prompt_tokens = self.whole("queue.max_prompt_tokens", raw.max_prompt_tokens).map(Tokens);
        let timeout = self.whole("queue.timeout_ms", raw.timeout_ms).map(Millis);
        let total_timeout = self.whole("queue.total_timeout_ms", raw.total_timeout_ms).map(Millis);
        if total_timeout < timeout && total_timeout.is_some() {
            let origin = self.merged.origin("queue.timeout_ms");
            let expected = format!("at least queue.timeout_ms, which is {} ({origin})", raw.timeout_ms);
            self.refuse("queue.total_timeout_ms", expected);
        }
        let max_overtakes = self.whole("queue.max_overtakes", raw.max_overtakes);
        let max_switches =
            self.optional(raw.max_switches, |proof, n| proof.positive("queue.max_switches", n));
        Some(Queue {
            max_jobs: max_jobs?,
            max_prompt_tokens: max_prompt_tokens?,
            timeout: timeout?,
            total_timeout: total_timeout?,
            max_overtakes: max_overtakes?,
            max_switches: max_switches?,
        })
    }

    fn watchdog(&mut self, raw: &RawWatchdog) -> Option<Watchdog> {
        let load = self.whole("watchdog.load_ms", raw.load_ms).map(Millis);
        let warm_up = self.whole("watchdog.warm_up_ms", raw.warm_up_ms).map(Millis);
        let prefill_base = self.whole("watchdog.prefill_base_ms", raw.prefill_base_ms).map(Millis);
        let prefill_factor = self.whole("watchdog.prefill_factor", raw.prefill_factor);
        let decode_floor = self.whole("watchdog.decode_floor_ms", raw.decode_floor_ms).map(Millis);
        let decode_factor = self.whole("watchdog.decode_factor", raw.decode_factor);
        let pipe = self.whole("watchdog.pipe_ms", raw.pipe_ms).map(Millis);
        let idle = self.whole("watchdog.idle_ms", raw.idle_ms).map(Millis);
        Some(Watchdog {
            load: load?,
            warm_up: warm_up?,
            prefill_base: prefill_base?,
            prefill_factor: prefill_factor?,
            decode_floor: decode_floor?,
            decode_factor: decode_factor?,
            pipe: pipe?,
            idle: idle?,
        })
    }

    fn engine(&mut self, raw: &RawEngine, cache_dir: Option<&Path>) -> Option<Engine> {
        let devices = self.devices(&raw.device);
        let threads = self.optional(raw.threads, |proof, n| proof.positive("engine.threads", n));
        let kv_cache = self.some("engine.kv_cache", raw.kv_cache.parse().ok());
        let prefill_chunk = self.positive("engine.prefill_chunk", raw.prefill_chunk);
        let context_length =
            self.optional(raw.context_length, |proof, n| proof.whole("engine.context_length", n).map(Tokens));
        let prefix_cache = self.whole("engine.prefix_cache_bytes", raw.prefix_cache_bytes).map(Bytes);
        let prefix_cache_dir = match &raw.prefix_cache_dir {
            Some(dir) => self.directory("engine.prefix_cache_dir", dir),
            // Beside the exports, which a service that may write nowhere else may write as well.
            None => cache_dir.map(|dir| dir.join("prompts")),
        };
        let draft_tokens = self.whole("engine.draft_tokens", raw.draft_tokens);
        let draft_model = self
            .optional(raw.draft_model.as_deref(), |proof, dir| proof.directory("engine.draft_model", dir));
        let default_max_new =
            self.whole("engine.default_max_new_tokens", raw.default_max_new_tokens).map(Tokens);
        Some(Engine {
            devices: devices?,
            threads: threads?,
            pin_cores: raw.pin_cores,
            own_operators: raw.own_operators,
            kv_cache: kv_cache?,
            prefill_chunk: prefill_chunk?,
            context_length: context_length?,
            prefix_cache: prefix_cache?,
            prefix_cache_dir: prefix_cache_dir?,
            prefix_cache_shared: raw.prefix_cache_shared,
            draft_tokens: draft_tokens?,
            draft_model: draft_model?,
            default_max_new: default_max_new?,
        })
    }

    fn devices(&mut self, raw: &str) -> Option<Devices> {
        match raw.parse() {
            Ok(devices) => Some(devices),
            Err(DevicesError::Word(_)) => self.some("engine.device", None),
            Err(e) => {
                self.refuse("engine.device", format!("a list of devices: {e}"));
                None
            }
        }
    }

    fn device(&mut self, raw: &RawDevice) -> Option<Device> {
        const LIMIT: &str = "device.memory_limit_bytes";
        let limit = self.optional(raw.memory_limit_bytes, |proof, n| proof.whole(LIMIT, n).map(Bytes));
        let trim = match raw.trim.parse() {
            Ok(trim) => Some(trim),
            Err(TrimPolicyError::Word { .. }) => self.some("device.trim", None),
            Err(e) => {
                self.refuse("device.trim", format!("a trim policy: {e}"));
                None
            }
        };
        let kv_keep = self.whole("device.kv_keep_bytes", raw.kv_keep_bytes).map(Bytes);
        let RawDevice { cuda_graphs, host_pool, .. } = *raw;
        Some(Device { memory_limit: limit?, trim: trim?, kv_keep: kv_keep?, cuda_graphs, host_pool })
    }

    fn onnxruntime(&mut self, raw: &RawOnnxRuntime) -> Option<OnnxRuntime> {
        let dir = self.optional(raw.dir.as_deref(), |proof, dir| proof.directory("onnxruntime.dir", dir));
        Some(OnnxRuntime { dir: dir? })
    }

    fn log(&mut self, raw: &RawLog) -> Option<Log> {
        let level = self.some("log.level", is_filter(&raw.level).then(|| raw.level.clone()));
        let format = self.some("log.format", log_format(&raw.format));
        Some(Log { level: level?, format: format?, prompts: raw.prompts })
    }

    /// A whole number within the limits of its setting.
    pub(super) fn whole<T: TryFrom<i64>>(&mut self, path: &'static str, raw: i64) -> Option<T> {
        let within = match Key::by_path(path)?.kind {
            Kind::Whole { least, most } => (least..=most).contains(&raw),
            Kind::Text(_) | Kind::Ratio | Kind::Truth | Kind::Secret(_) => false,
        };
        let number = if within { T::try_from(raw).ok() } else { None };
        self.some(path, number)
    }

    fn positive(&mut self, path: &'static str, raw: i64) -> Option<NonZeroUsize> {
        self.whole(path, raw).and_then(NonZeroUsize::new)
    }

    /// The path of a file or directory: anything but nothing.
    pub(super) fn directory(&mut self, path: &'static str, raw: &str) -> Option<PathBuf> {
        self.some(path, (!raw.is_empty()).then(|| raw.into()))
    }

    /// A setting that need not be set: `Some(None)` when it is not.
    pub(super) fn optional<R, T>(
        &mut self,
        raw: Option<R>,
        check: impl FnOnce(&mut Self, R) -> Option<T>,
    ) -> Option<Option<T>> {
        match raw {
            None => Some(None),
            Some(raw) => check(self, raw).map(Some),
        }
    }

    pub(super) fn some<T>(&mut self, path: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            let expected = Key::by_path(path).map_or_else(String::new, Key::expected);
            self.refuse(path, expected);
        }
        value
    }

    pub(super) fn refuse(&mut self, key: &'static str, expected: String) {
        let shown = |value: &Value| Some(Key::by_path(key)?.show(&value.kind));
        let value = self.merged.get(key).and_then(shown).unwrap_or_default();
        let origin = self.merged.origin(key).to_owned();
        self.problems.push(Problem::Value { key, value, origin, expected });
    }
}

fn quantize(raw: &str) -> Option<Quantize> {
    match raw {
        "none" | "float32" => Some(Quantize::None),
        "int8" => Some(Quantize::Int8),
        "int4" => Some(Quantize::Int4),
        _ => None,
    }
}

fn log_format(raw: &str) -> Option<LogFormat> {
    match raw {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

/// A filter would take a misspelt level for the name of a module, so a single word has to be a level; nothing at
/// all would be one, `error`.
pub(super) fn is_filter(raw: &str) -> bool {
    let is_level = !raw.is_empty() && raw.parse::<LevelFilter>().is_ok();
    is_level || (raw.contains(['=', ',']) && EnvFilter::try_new(raw).is_ok())
}

fn directory_name(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// Where this platform keeps what can be made again.
fn default_cache_dir(around: &Surroundings) -> PathBuf {
    // A relative path would be another directory for each directory that eka is started in; XDG says to ignore those.
    let variable =
        |name: &str| around.variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = |below: &str| variable("HOME").map(|home| home.join(below));
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home("Library/Caches")
    } else {
        variable("XDG_CACHE_HOME").or_else(|| home(".cache"))
    };
    // A container's user often has no home; it has a place for what does not last, but shares that with other users.
    base.map_or_else(|| temporary_dir().join(own_name()), |base| base.join("eka"))
}

/// The temporary directory; one of the working directory's is none, as `TMPDIR=` would name.
fn temporary_dir() -> PathBuf {
    let dir = std::env::temp_dir();
    if cfg!(unix) && dir.is_relative() { "/tmp".into() } else { dir }
}

/// Name of this user's directory within a directory that all users share.
fn own_name() -> String {
    #[cfg(unix)]
    return format!("eka-{}", rustix::process::geteuid().as_raw());
    #[cfg(not(unix))]
    "eka".into()
}
