//! State shared by all handlers: settings, models, the executor and limits on work.

use std::{
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    body_memory::BodyMemory, error::ApiError, model_registry::ModelRegistry, offload::Offload,
    resumable::ResumableStreams, stored_responses::StoredResponses, tls::Tls,
};
use crate::{
    auth::AccessControl,
    config::{Config, DefaultsFrom, MetricNames, UnknownFields},
    executor::{Deadlines, Executor},
    job::{Command, CommandOutcome, Pooling, Readiness, SamplingDefaults},
    metrics::Metrics,
    prompt_store::PromptStore,
    sandbox::{Sandbox, SandboxError},
    text::Text,
    units::{Bytes, Tokens},
};

/// Sends a command to all slots; returns at least one outcome, one per device.
pub type Commands =
    Arc<dyn Fn(Command) -> Pin<Box<dyn Future<Output = Vec<CommandOutcome>> + Send>> + Send + Sync>;

/// Gives the readiness of each device, or of each slot of a cluster, by its name.
pub type DeviceStates = Arc<dyn Fn() -> Vec<(String, Readiness)> + Send + Sync>;

/// Makes a node of a cluster stop after the requests that it has; `false` if the node is unknown.
pub type DrainNode = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Says whether something can answer requests for a model, by its id.
pub type ServesModel = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Sets `log.level`; the error is the reason for a failure.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Default of [`Settings::write_timeout`].
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of the HTTP server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest request body.
    pub body_limit: Bytes,
    /// Memory for the bodies of all requests together.
    pub body_memory: Bytes,
    /// Interval of heartbeats on an idle stream.
    pub heartbeat: Duration,
    /// Maximum number of connections; a further one closes an idle one.
    pub max_connections: NonZeroUsize,
    /// A client that reads nothing of its answer for this long is disconnected.
    pub write_timeout: Duration,
    /// Time for queued and running requests at shutdown.
    pub grace: Duration,
    /// Time limits of requests that send none. A request may only shorten them.
    pub deadlines: Deadlines,
    /// Lowers the model's context length.
    pub context_length: Option<Tokens>,
    /// Token limit of requests that send none, lowered to what fits the context; `None` is what is left of the context.
    pub default_max_new: Option<Tokens>,
    /// Where the sampling parameters of requests that send none come from.
    pub sampling_defaults: DefaultsFrom,
    /// Maximum number of sequences of a request that are computed together.
    pub max_sequences: NonZeroUsize,
    /// How embeddings are made where a request does not say.
    pub pooling: Pooling,
    /// Whether prompts are logged.
    pub log_prompts: bool,
    /// How unknown request fields are handled.
    pub unknown_fields: UnknownFields,
    /// Further names of metrics.
    pub metric_names: MetricNames,
    /// Whether all API keys share one prefix cache.
    pub prefix_cache_shared: bool,
    /// Memory for stored responses; 0 stores none.
    pub stored_responses: Bytes,
    /// How long a response is stored.
    pub stored_responses_lifetime: Duration,
    /// How long a stream can be resumed; 0 keeps no streams.
    pub resume_window: Duration,
    /// Memory for the events of streams that can be resumed.
    pub resume_memory: Bytes,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let Config { server, queue, engine, log, .. } = config;
        Self {
            body_limit: server.body_limit_bytes,
            body_memory: server.body_memory_bytes,
            heartbeat: server.heartbeat_ms.into(),
            max_connections: server.max_connections,
            write_timeout: WRITE_TIMEOUT,
            grace: server.grace_ms.into(),
            deadlines: Deadlines { queue: queue.timeout_ms.into(), total: queue.total_timeout_ms.into() },
            context_length: engine.context_length,
            default_max_new: engine.default_max_new_tokens.tokens(),
            sampling_defaults: engine.sampling_defaults,
            max_sequences: engine.max_sequences,
            pooling: engine.pooling,
            log_prompts: log.prompts,
            unknown_fields: server.unknown_fields,
            metric_names: server.metric_names,
            prefix_cache_shared: engine.prefix_cache_shared,
            stored_responses: server.stored_responses_bytes,
            stored_responses_lifetime: server.stored_responses_ttl_ms.into(),
            resume_window: server.resume_ms.into(),
            resume_memory: server.resume_bytes,
        }
    }
}

/// State shared by all handlers. Its public fields are optional parts, to be set after [`AppState::new`].
#[derive(Clone)]
pub struct AppState {
    pub(crate) models: ModelRegistry,
    pub(crate) executor: Executor,
    /// API keys, rate limits, allowed hosts and origins; by default every request is admitted.
    pub access: Arc<AccessControl>,
    /// `None` without TLS.
    pub tls: Option<Arc<Tls>>,
    /// Compiles schemas and renders chat templates; without it, requests that need it are refused.
    pub sandbox: Option<Sandbox>,
    /// `None` if admin commands are not supported.
    pub commands: Option<Commands>,
    /// `None` if this is no gateway of a cluster.
    pub drain_node: Option<DrainNode>,
    /// `None` if every model of the settings can be answered.
    pub serves: Option<ServesModel>,
    /// `None` if prompts cannot be saved.
    pub saved: Option<PromptStore>,
    /// `None` if the log level cannot be changed.
    pub set_log_level: Option<SetLogLevel>,
    /// Whether this is a node of a cluster: it answers probes, and its requests come from gateways.
    pub only_operates: bool,
    /// Cancelled by `/admin/drain`.
    pub drain: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// The readiness of each device by its name; empty with a single device.
    pub devices: DeviceStates,
    pub(crate) settings: Settings,
    /// Current time limits of requests that send none.
    pub deadlines: watch::Receiver<Deadlines>,
    pub(crate) offload: Offload,
    pub(crate) body_memory: BodyMemory,
    pub(crate) stored_responses: StoredResponses,
    pub(crate) resumable: ResumableStreams,
    /// Whether a worker has ever been ready.
    pub(crate) was_ready: Arc<AtomicBool>,
}

impl AppState {
    /// State without the optional parts.
    #[must_use]
    pub fn new(
        models: impl Into<ModelRegistry>,
        executor: Executor,
        metrics: Arc<Metrics>,
        readiness: watch::Receiver<Readiness>,
        settings: Settings,
    ) -> Self {
        let deadlines = watch::channel(settings.deadlines).1;
        let body_memory = BodyMemory::new(settings.body_memory);
        let stored_responses =
            StoredResponses::new(settings.stored_responses, settings.stored_responses_lifetime);
        let resumable =
            ResumableStreams::new(settings.resume_window, settings.resume_memory, Arc::clone(&metrics));
        Self {
            models: models.into(),
            executor,
            access: Arc::default(),
            tls: None,
            sandbox: None,
            commands: None,
            drain_node: None,
            serves: None,
            saved: None,
            set_log_level: None,
            only_operates: false,
            drain: CancellationToken::new(),
            metrics,
            readiness,
            devices: Arc::new(Vec::new),
            settings,
            deadlines,
            offload: Offload::default(),
            body_memory,
            stored_responses,
            resumable,
            was_ready: Arc::default(),
        }
    }

    pub(crate) fn sandbox(&self) -> Result<&Sandbox, SandboxError> {
        let missing = || SandboxError::Unavailable { reason: "there is none".into() };
        self.sandbox.as_ref().ok_or_else(missing)
    }

    /// Refuses a model that no node of the cluster has.
    pub(crate) fn check_served(&self, model: &str) -> Result<(), ApiError> {
        let Some(serves) = self.serves.as_ref().filter(|serves| !serves(model)) else { return Ok(()) };
        let ids = self.models.usable_ids().into_iter().filter(|id| serves(id));
        let served = ids.map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ");
        Err(ApiError::ModelNotFound { asked: model.to_owned(), served })
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        *self.deadlines.borrow()
    }

    /// Maximum tokens of prompt and answer together.
    pub(crate) fn context_length(&self, text: &Text) -> Tokens {
        let model = Tokens(text.card().context_length);
        self.settings.context_length.map_or(model, |lowered| lowered.min(model))
    }

    /// Sampling parameters of requests to this model that send none.
    pub(crate) fn sampling_defaults(&self, text: &Text) -> SamplingDefaults {
        match self.settings.sampling_defaults {
            DefaultsFrom::Model => text.card().sampling,
            DefaultsFrom::Eka => SamplingDefaults::default(),
        }
    }

    pub(crate) fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Records the first time that a worker is ready. Does not complete.
    pub(crate) async fn watch_for_ready(&self) {
        let is_up = |seen: &Readiness| matches!(seen, Readiness::Ready(_) | Readiness::Restarting { .. });
        if self.readiness.clone().wait_for(is_up).await.is_ok() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        std::future::pending().await
    }
}
