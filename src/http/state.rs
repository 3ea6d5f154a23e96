//! What the handlers share: the settings, the models, the queue and the bounds on work.

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

use super::{body_memory::BodyMemory, model_registry::ModelRegistry, offload::Offload, server::tls::Tls};
use crate::{
    auth::AccessControl,
    config::{Config, UnknownFields},
    executor::{Deadlines, Executor},
    job::{Order, OrderOutcome, Readiness},
    metrics::Metrics,
    prompt_store::PromptStore,
    sandbox::{Sandbox, SandboxError},
    text::Text,
    units::{Bytes, Tokens},
};

/// How orders reach the slots: one outcome for each, at least one.
pub type Orders = Arc<dyn Fn(Order) -> Pin<Box<dyn Future<Output = Vec<OrderOutcome>> + Send>> + Send + Sync>;

/// How `log.level` is set; the error is why it was not.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// For a client to take something of what it is sent, by default.
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest body of a request.
    pub body_limit: Bytes,
    /// What the bodies of all requests may take together.
    pub body_memory: Bytes,
    /// A stream that has nothing to say says so this often.
    pub heartbeat: Duration,
    /// Most connections at once; for a further one, an idle one is closed.
    pub max_connections: NonZeroUsize,
    /// A client that takes nothing of its answer for so long is left.
    pub read_patience: Duration,
    /// At shutdown, what waits and runs has this long to finish.
    pub grace: Duration,
    /// Of requests that name none. They may ask for less, not for more.
    pub deadlines: Deadlines,
    /// Lowers the model's context length.
    pub context_length: Option<Tokens>,
    /// Of requests that name none, lowered to what the context has room for.
    pub default_max_new: Tokens,
    /// What clients ask is logged as well.
    pub log_prompts: bool,
    /// What happens to fields of requests that eka does not have.
    pub unknown_fields: UnknownFields,
    /// Whether different keys may begin with one another's prompts.
    pub prefix_cache_shared: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let Config { server, queue, engine, log, .. } = config;
        Self {
            body_limit: server.body_limit_bytes,
            body_memory: server.body_memory_bytes,
            heartbeat: server.heartbeat_ms.into(),
            max_connections: server.max_connections,
            read_patience: READ_PATIENCE,
            grace: server.grace_ms.into(),
            deadlines: Deadlines { queue: queue.timeout_ms.into(), total: queue.total_timeout_ms.into() },
            context_length: engine.context_length,
            default_max_new: engine.default_max_new_tokens,
            log_prompts: log.prompts,
            unknown_fields: server.unknown_fields,
            prefix_cache_shared: engine.prefix_cache_shared,
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    pub(crate) catalogue: ModelRegistry,
    pub(crate) executor: Executor,
    /// Who may come in.
    pub(crate) access: Arc<AccessControl>,
    /// `None` is HTTP without TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Without one, requests that need it are refused.
    pub(crate) sandbox: Option<Sandbox>,
    /// `None` where nobody takes any.
    pub(crate) orders: Option<Orders>,
    /// Where prompts are saved; `None` where none are.
    pub(crate) saved: Option<PromptStore>,
    /// `None` where it cannot be changed.
    pub(crate) set_log_level: Option<SetLogLevel>,
    /// Cancelled when `/admin` is told that the server shall end.
    pub(crate) drain: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// Of each device by its name, where there are several.
    pub(crate) devices: Arc<[(String, watch::Receiver<Readiness>)]>,
    pub(crate) settings: Settings,
    /// Of requests that name none, as they are now.
    pub(crate) deadlines: watch::Receiver<Deadlines>,
    /// Where work is done that takes long.
    pub(crate) offload: Offload,
    /// What the bodies that are being read take.
    pub(crate) body_memory: BodyMemory,
    /// A worker has been ready at some time.
    pub(crate) was_ready: Arc<AtomicBool>,
}

impl AppState {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        catalogue: impl Into<ModelRegistry>,
        executor: Executor,
        metrics: Arc<Metrics>,
        readiness: watch::Receiver<Readiness>,
        settings: Settings,
    ) -> Self {
        let deadlines = watch::channel(settings.deadlines).1;
        let body_memory = BodyMemory::new(settings.body_memory);
        Self {
            catalogue: catalogue.into(),
            executor,
            access: Arc::default(),
            tls: None,
            sandbox: None,
            orders: None,
            saved: None,
            set_log_level: None,
            drain: CancellationToken::new(),
            metrics,
            readiness,
            devices: Arc::default(),
            settings,
            deadlines,
            offload: Offload::default(),
            body_memory,
            was_ready: Arc::default(),
        }
    }

    /// With processes that compile schemas and render chat templates; without, requests that need one are refused.
    #[must_use]
    pub fn with_sandbox(self, sandbox: Sandbox) -> Self {
        Self { sandbox: Some(sandbox), ..self }
    }

    /// With somebody to take the orders of `/admin`.
    #[must_use]
    pub fn with_orders(self, orders: Orders) -> Self {
        Self { orders: Some(orders), ..self }
    }

    /// With a place for saved prompts.
    #[must_use]
    pub fn with_saved_prompts(self, store: PromptStore) -> Self {
        Self { saved: Some(store), ..self }
    }

    /// With several devices, by their names, whose states are told one by one.
    #[must_use]
    pub fn with_devices(self, devices: Vec<(String, watch::Receiver<Readiness>)>) -> Self {
        Self { devices: devices.into(), ..self }
    }

    /// With access rules; without them, every request is admitted.
    #[must_use]
    pub fn with_access_control(self, access: Arc<AccessControl>) -> Self {
        Self { access, ..self }
    }

    /// With TLS; without, whoever listens on the way reads along.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// With a log whose level can be changed.
    #[must_use]
    pub fn with_log(self, set_log_level: SetLogLevel) -> Self {
        Self { set_log_level: Some(set_log_level), ..self }
    }

    /// With deadlines that may change; without, they stay those of the settings.
    #[must_use]
    pub fn with_deadlines(self, deadlines: watch::Receiver<Deadlines>) -> Self {
        Self { deadlines, ..self }
    }

    /// Cancels `drain` when `/admin` is told that the server shall end; whoever waits for it sees to that.
    #[must_use]
    pub fn with_drain(self, drain: CancellationToken) -> Self {
        Self { drain, ..self }
    }

    pub(crate) fn sandbox(&self) -> Result<&Sandbox, SandboxError> {
        let missing = || SandboxError::Unavailable { reason: "there is none".into() };
        self.sandbox.as_ref().ok_or_else(missing)
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        *self.deadlines.borrow()
    }

    /// Most positions of prompt and answer together.
    pub(crate) fn context_length(&self, text: &Text) -> Tokens {
        let model = Tokens(text.card().context_length);
        self.settings.context_length.map_or(model, |lowered| lowered.min(model))
    }

    pub(crate) fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Notes the first time that a worker is ready, whether or not anybody asks while it is.
    pub(crate) async fn watch_for_ready(&self) {
        let is_up = |seen: &Readiness| matches!(seen, Readiness::Ready(_) | Readiness::Restarting { .. });
        if self.readiness.clone().wait_for(is_up).await.is_ok() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        std::future::pending().await
    }
}
