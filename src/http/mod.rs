//! The HTTP side: routes, request and answer types, server-sent events, and the one table from error to status.
//!
//! `listen` accepts connections and `connection` stands between them and actix-web. A request goes down this list: `gate` lets
//! it in, `body` reads it, `fields` takes it apart, `dialect` and `ask` prove it (`compat` has the fields of other servers,
//! `ignored` those that were left out), `rendering` has the sandbox make a prompt of its messages, `admission` makes it a
//! job, `answer` makes text of what comes back, and `generate` sends it. `error` is
//! where each of them says no.
//!
//! # What runs where
//!
//! What may take more than a millisecond, whatever a client sends, is not done on the HTTP thread. `offload` bounds how
//! much of it is done at once.
//!
//! | work | most of it | where |
//! |---|---|---|
//! | heads, hosts, origins, keys, allowances | 128 KiB | HTTP thread |
//! | reading a body | `server.body_limit_bytes` each, `server.body_memory_bytes` in all | HTTP thread, copied once |
//! | gzip, JSON, fields, their errors | `server.body_limit_bytes` | offload, above 16 KiB |
//! | chat templates (generating, `/tokenize`, `/apply-template`, `/admin/cache`) | steps, time and memory are limited | `sandbox`, a process of its own |
//! | tokenizing, prompts and `/tokenize` | what the context holds, and a little more | offload, above 1 KiB |
//! | `/detokenize` | as many ids as a body holds | offload, above 1,024 |
//! | schemas, grammars, regular expressions | time and memory are limited | `sandbox`, a process of its own |
//! | `dry_sequence_breakers`: a search through the vocabulary | 16 strings of 64 bytes | offload, always |
//! | logging prompts (`log.prompts`) | a prompt | offload, with the fields |
//! | a token on its way to a stream: stop strings, calls | 16 stop strings; tokens are short | HTTP thread |
//! | whole answers as JSON | choices × tokens × alternatives | offload, above 16 KiB |
//! | `/v1/slot`, `/v1/models`, `/metrics` | bounded by the queue, 64 past requests, and labels that are fixed | HTTP thread |
//! | `/openapi.json`, `/docs`, `/` | made once, when the server starts | HTTP thread, a copy of 100 KiB |
//! | files of saved prompts | disks may be slow | a thread of their own |
//!
//! A client that leaves is noticed because everything made for it is dropped: its handler or stream, the answer within,
//! and the ticket within that. Nothing polls for it.

mod admin;
mod admission;
mod answer;
mod ask;
mod body;
mod body_memory;
mod catalogue;
mod chat;
mod compat;
mod completions;
mod connection;
mod connections;
mod cors;
mod count;
mod dialect;
mod error;
mod fields;
mod form;
pub mod fuzzing;
mod gate;
mod generate;
mod headers;
mod host;
mod id;
mod ignored;
mod items;
mod listen;
mod messages;
mod native;
mod offload;
mod openapi;
mod page;
mod probes;
mod refusal;
mod rendering;
mod request_id;
mod responses;
mod salt;
mod sampling;
mod saved;
mod scored;
mod slot;
mod strict;
mod texts;
mod tls;
mod tokenizing;
mod tools;

use std::{
    io,
    net::TcpListener,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpRequest, Resource, Route, web};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::connections::SPARE as SPARE_CONNECTIONS;
pub use self::{
    admin::{Orders, SetLogLevel},
    catalogue::{Catalogue, Unavailable},
    tls::{Tls, TlsError},
};
use self::{
    body_memory::BodyMemory, chat::Chat, completions::Completions, dialect::Dialect, error::ApiError,
    generate::generate, native::Native, offload::Offload, responses::Responses,
};
use crate::{
    auth::AccessControl,
    config::{Config, UnknownFields},
    executor::{Deadlines, Executor},
    job::Readiness,
    metrics::Metrics,
    prompt_store::Store,
    sandbox::{Sandbox, SandboxError},
    text::Text,
    units::{Bytes, Tokens},
};

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
            body_limit: server.body_limit,
            body_memory: server.body_memory,
            heartbeat: server.heartbeat.into(),
            max_connections: server.max_connections,
            read_patience: READ_PATIENCE,
            grace: server.grace.into(),
            deadlines: Deadlines { queue: queue.timeout.into(), total: queue.total_timeout.into() },
            context_length: engine.context_length,
            default_max_new: engine.default_max_new,
            log_prompts: log.prompts,
            unknown_fields: server.unknown_fields,
            prefix_cache_shared: engine.prefix_cache_shared,
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    catalogue: Catalogue,
    executor: Executor,
    /// Who may come in.
    access: Arc<AccessControl>,
    /// `None` is HTTP without TLS.
    tls: Option<Arc<Tls>>,
    /// Without one, requests that need it are refused.
    sandbox: Option<Sandbox>,
    /// `None` where nobody takes any.
    orders: Option<Orders>,
    /// Where prompts are saved; `None` where none are.
    saved: Option<Store>,
    /// `None` where it cannot be changed.
    set_log_level: Option<SetLogLevel>,
    /// Cancelled when `/admin` is told that the server shall end.
    drain: CancellationToken,
    metrics: Arc<Metrics>,
    readiness: watch::Receiver<Readiness>,
    /// Of each device by its name, where there are several.
    devices: Arc<[(String, watch::Receiver<Readiness>)]>,
    settings: Settings,
    /// Of requests that name none, as they are now.
    deadlines: watch::Receiver<Deadlines>,
    /// Where work is done that takes long.
    offload: Offload,
    /// What the bodies that are being read take.
    body_memory: BodyMemory,
    /// A worker has been ready at some time.
    was_ready: Arc<AtomicBool>,
}

impl AppState {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        catalogue: impl Into<Catalogue>,
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
    pub fn with_saved_prompts(self, store: Store) -> Self {
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

    fn sandbox(&self) -> Result<&Sandbox, SandboxError> {
        let missing = || SandboxError::Unavailable { reason: "there is none".into() };
        self.sandbox.as_ref().ok_or_else(missing)
    }

    fn deadlines(&self) -> Deadlines {
        *self.deadlines.borrow()
    }

    /// Most positions of prompt and answer together.
    fn context_length(&self, text: &Text) -> Tokens {
        let model = Tokens(text.card().context_length);
        self.settings.context_length.map_or(model, |lowered| lowered.min(model))
    }

    fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Notes the first time that a worker is ready, whether or not anybody asks while it is.
    async fn watch_for_ready(&self) {
        let is_up = |seen: &Readiness| matches!(seen, Readiness::Ready(_) | Readiness::Restarting { .. });
        if self.readiness.clone().wait_for(is_up).await.is_ok() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        std::future::pending().await
    }
}

/// When a server begins and ends, and what else happens then.
#[derive(Debug)]
pub struct Life<B, S, F> {
    /// What runs beside the handlers, on their thread.
    pub beside: B,
    /// Completes when the server shall end.
    pub shutdown: S,
    /// What is left to do when no answer is due any more. Probes are still answered meanwhile.
    pub finish: F,
}

/// Serves until `shutdown` completes, then refuses new requests, lets what waits and runs finish within the grace of
/// the settings, and returns. Probes are answered until the end.
///
/// One thread does all of it, and what runs beside it: a token that is handed from thread to thread waits for a core each
/// time, and the cores are the worker's. More HTTP threads would not help against a request that holds one for long: a few
/// such requests hold them all. So nothing that a client sends may take more than a millisecond on it; the table in the
/// module's documentation says where such work is done instead.
///
/// # Errors
/// [`io::Error`] when the listener cannot be used.
pub async fn serve<B, S, F>(listener: TcpListener, state: AppState, life: Life<B, S, F>) -> io::Result<()>
where
    B: Future<Output = ()> + Send + 'static,
    S: Future<Output = ()>,
    F: Future<Output = ()>,
{
    let Life { beside, shutdown, finish } = life;
    // Made now, and not by the first request that asks for it.
    std::thread::spawn(openapi::prepare);
    let beside = Arc::new(Mutex::new(Some(beside)));
    let sandbox = state.sandbox.clone();
    let begin = move || {
        // Its processes end with the thread that starts them.
        sandbox.iter().for_each(Sandbox::warm_up);
        if let Some(beside) = beside.lock().unwrap_or_else(PoisonError::into_inner).take() {
            actix_web::rt::spawn(beside);
        }
    };
    let server = listen::listen(listener, state.clone(), begin)?;
    let handle = server.handle();
    let ending = async {
        shutdown.await;
        state.executor.drain(state.settings.grace).await;
        finish.await;
        handle.stop(true).await;
    };
    let ended = async { tokio::join!(server, ending).0 };
    tokio::select! {
        ended = ended => ended,
        () = state.watch_for_ready() => Ok(()),
    }
}

/// One line of the list of what is served.
struct RouteLine {
    method: &'static str,
    path: &'static str,
    about: &'static str,
}

const fn line(method: &'static str, path: &'static str, about: &'static str) -> RouteLine {
    RouteLine { method, path, about }
}

/// Everything that is served.
const ROUTES: &[RouteLine] = &[
    line("POST", Native::ROUTE, "one answer, whole or streamed, with timings and memory"),
    line("POST", Completions::ROUTE, "OpenAI's completions"),
    line("POST", Chat::ROUTE, "OpenAI's chat completions"),
    line("POST", Responses::ROUTE, "OpenAI's responses, of which none is kept"),
    line("POST", "/tokenize", "the tokens of a text or of messages"),
    line("POST", "/detokenize", "the text of tokens"),
    line("POST", "/apply-template", "the prompt that the chat template makes of messages"),
    line("GET", "/v1/models", "the models that are served"),
    line("GET", "/v1/models/{id}", "one of them, by its id"),
    line("GET", "/v1/slot", "what runs, who waits, and what the last requests took"),
    line("POST", "/admin/models/{id}/load", "loads a model; for whoever runs the server"),
    line("POST", "/admin/models/{id}/unload", "gives a model's memory back; likewise"),
    line("POST", "/admin/trim", "gives back what no job needs; likewise"),
    line("POST", "/admin/cache", "saves a prompt to a file, restores or deletes one; likewise"),
    line("GET", "/admin/cache", "the prompts that are saved; likewise"),
    line("POST", "/admin/log", "sets log.level; likewise"),
    line("POST", "/admin/drain", "ends the server when its work is done; likewise"),
    line("GET", "/livez", "200 while this process answers"),
    line("GET", "/readyz", "200 while a worker has the model loaded"),
    line("GET", "/startupz", "200 once a worker has had the model loaded"),
    line("GET", "/metrics", "figures in the OpenMetrics text format"),
    line("GET", "/openapi.json", "all of this as an OpenAPI document"),
    line("GET", "/docs", "the same for people"),
    line("GET", "/", "this list; a page where HTML is asked for"),
    line("GET", "/page/{file}", "what that page is made of"),
];

fn routes(app: &mut web::ServiceConfig) {
    app.service(post(Native::ROUTE, web::post().to(generate::<Native>)))
        .service(post(Completions::ROUTE, web::post().to(generate::<Completions>)))
        .service(post(Chat::ROUTE, web::post().to(generate::<Chat>)))
        .service(post(Responses::ROUTE, web::post().to(generate::<Responses>)))
        .service(post("/tokenize", web::post().to(texts::tokenize)))
        .service(post("/detokenize", web::post().to(texts::detokenize)))
        .service(post("/apply-template", web::post().to(texts::apply_template)))
        .service(get("/v1/models", || web::route().to(probes::models)))
        .service(get("/v1/models/{id:.+}", || web::route().to(probes::model)))
        .service(post("/admin/models/{id}/load", web::post().to(admin::load)))
        .service(post("/admin/models/{id}/unload", web::post().to(admin::unload)))
        .service(post("/admin/trim", web::post().to(admin::trim)))
        .service(admin_cache())
        .service(post("/admin/log", web::post().to(admin::log)))
        .service(post("/admin/drain", web::post().to(admin::drain)))
        .service(get("/livez", || web::route().to(probes::livez)))
        .service(get("/readyz", || web::route().to(probes::readyz)))
        .service(get("/startupz", || web::route().to(probes::startupz)))
        .service(get("/metrics", || web::route().to(probes::metrics)))
        .service(get("/v1/slot", || web::route().to(slot::slot)))
        .service(get("/openapi.json", || web::route().to(openapi::json)))
        .service(get("/docs", || web::route().to(page::docs)))
        .service(get("/", || web::route().to(probes::index)))
        .service(get("/page/{file}", || web::route().to(page::file)))
        .default_service(web::to(not_found));
}

fn post(path: &str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(|| refuse_method("POST")))
}

/// A resource that is read; HEAD is GET without the body.
fn get(path: &str, route: fn() -> Route) -> Resource {
    use actix_web::guard::{Get, Head};
    web::resource(path)
        .route(route().guard(Get()))
        .route(route().guard(Head()))
        .default_service(web::to(|| refuse_method("GET, HEAD")))
}

fn admin_cache() -> Resource {
    use actix_web::guard::{Get, Head};
    web::resource("/admin/cache")
        .route(web::post().to(saved::cache))
        .route(web::route().guard(Get()).to(saved::list))
        .route(web::route().guard(Head()).to(saved::list))
        .default_service(web::to(|| refuse_method("GET, HEAD, POST")))
}

async fn refuse_method(allow: &'static str) -> Result<(), ApiError> {
    Err(ApiError::MethodNotAllowed { allow })
}

async fn not_found(request: HttpRequest) -> Result<(), ApiError> {
    Err(ApiError::NotFound { path: request.path().to_owned() })
}
