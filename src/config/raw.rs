//! Settings as typed: the right shape, nothing checked yet.

use serde::Deserialize;

/// Every setting, as the layers leave it. Not `Debug`: one of them is a secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) server: RawServer,
    pub(super) auth: RawAuth,
    #[serde(default)]
    pub(super) tls: RawTls,
    #[serde(default)]
    pub(super) cors: RawCors,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) model: RawModel,
    #[serde(default)]
    pub(super) models: RawModels,
    pub(super) queue: RawQueue,
    pub(super) engine: RawEngine,
    pub(super) device: RawDevice,
    #[serde(default)]
    pub(super) onnxruntime: RawOnnxRuntime,
    pub(super) watchdog: RawWatchdog,
    pub(super) recycle: RawRecycle,
    pub(super) log: RawLog,
    pub(super) trace: RawTrace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) bind: String,
    pub(super) port: i64,
    pub(super) grace_ms: i64,
    pub(super) heartbeat_ms: i64,
    pub(super) body_limit_bytes: i64,
    pub(super) body_memory_bytes: i64,
    pub(super) max_connections: i64,
    pub(super) hosts: Option<String>,
    pub(super) unknown_fields: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    pub(super) keys_file: Option<String>,
    pub(super) keys: Option<String>,
    pub(super) open_metrics: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) cert_file: Option<String>,
    pub(super) key_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCors {
    pub(super) origins: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) requests_per_minute_per_ip: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) path: String,
    pub(super) id: Option<String>,
    pub(super) quantize: String,
    pub(super) block_size: Option<i64>,
    pub(super) cache_dir: Option<String>,
    pub(super) verify: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModels {
    pub(super) dir: Option<String>,
    pub(super) memory_bytes: Option<i64>,
    pub(super) keep_alive_ms: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQueue {
    pub(super) max_jobs: i64,
    pub(super) max_prompt_tokens: i64,
    pub(super) timeout_ms: i64,
    pub(super) total_timeout_ms: i64,
    pub(super) max_overtakes: i64,
    pub(super) max_switches: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEngine {
    pub(super) device: String,
    pub(super) threads: Option<i64>,
    pub(super) pin_cores: bool,
    pub(super) own_operators: bool,
    pub(super) kv_cache: String,
    pub(super) prefill_chunk: i64,
    pub(super) context_length: Option<i64>,
    pub(super) prefix_cache_bytes: i64,
    pub(super) prefix_cache_dir: Option<String>,
    pub(super) prefix_cache_shared: bool,
    pub(super) draft_tokens: i64,
    pub(super) draft_model: Option<String>,
    pub(super) default_max_new_tokens: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDevice {
    pub(super) memory_limit_bytes: Option<i64>,
    pub(super) trim: String,
    pub(super) kv_keep_bytes: i64,
    pub(super) cuda_graphs: bool,
    pub(super) host_pool: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOnnxRuntime {
    pub(super) dir: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWatchdog {
    pub(super) load_ms: i64,
    pub(super) warm_up_ms: i64,
    pub(super) prefill_base_ms: i64,
    pub(super) prefill_factor: i64,
    pub(super) decode_floor_ms: i64,
    pub(super) decode_factor: i64,
    pub(super) pipe_ms: i64,
    pub(super) idle_ms: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecycle {
    pub(super) after_jobs: Option<i64>,
    pub(super) after_ms: Option<i64>,
    pub(super) memory_growth_bytes: i64,
    pub(super) between_requests: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) level: String,
    pub(super) format: String,
    pub(super) prompts: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTrace {
    pub(super) otlp_endpoint: Option<String>,
    pub(super) sample_ratio: f64,
    pub(super) service_name: String,
}
