//! `GET /v1/models` and `GET /v1/models/{id}`: OpenAI's model objects, with eka's details.

use std::{borrow::Cow, collections::BTreeMap};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    http::{
        adapter_registry::ServedAdapter,
        error::{ApiError, Unavailable},
        middleware::auth::check_model,
        model_registry::{self, ModelEntry},
        state::AppState,
    },
    job::{Memory, ModelId, ModelReport, Readiness, SlotReport},
    text::Text,
    units::{Millis, Tokens},
};

/// The served models.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList<'a> {
    /// Always `list`.
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// OpenAI's model object, with eka's details.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model<'a> {
    id: Cow<'a, str>,
    /// Always `model`.
    object: &'static str,
    /// When the model was exported, in seconds since 1970.
    created: u64,
    /// Always `eka`.
    owned_by: &'static str,
    /// The base of an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    /// Only of an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    adapter: Option<AdapterDetails>,
    eka: ModelDetails<'a>,
}

/// An adapter that is served beside its base.
#[derive(Serialize, ToSchema)]
struct AdapterDetails {
    rank: usize,
    /// Names of the modules that it changes, without their layers.
    targets: Vec<String>,
    /// Size of its tensors in bytes.
    bytes: u64,
    /// Why it cannot be mixed with other adapters; null if it can.
    #[schema(required)]
    exclusive: Option<String>,
}

/// eka's details of a model.
#[derive(Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
enum ModelDetails<'a> {
    /// The model's files cannot be used.
    Unavailable { error: &'a str },
    Available {
        /// Most tokens of prompt and answer together.
        context_length: Tokens,
        /// Number of token ids.
        vocabulary: usize,
        has_chat_template: bool,
        /// Null while the model is not loaded.
        #[schema(required)]
        loaded: Option<Box<LoadedModel>>,
        worker: Box<Worker>,
        /// With several devices, the state of each.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[schema(required = false)]
        devices: Vec<OnDevice>,
    },
}

/// The model and the worker on one of several devices.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelOnDevice)]
struct OnDevice {
    device: String,
    #[schema(required)]
    loaded: Option<LoadedModel>,
    worker: Worker,
}

/// A model that is loaded.
#[derive(Serialize, ToSchema)]
struct LoadedModel {
    /// Graph nodes by execution provider.
    placement: BTreeMap<String, usize>,
    /// Graph nodes by execution provider and operator.
    operators: BTreeMap<String, BTreeMap<String, usize>>,
    /// Most tokens of prompt and answer together.
    capacity: usize,
    /// Threads that compute passes of one token.
    #[schema(required)]
    decode_threads: Option<usize>,
    /// Threads that compute passes of several tokens.
    #[schema(required)]
    prefill_threads: Option<usize>,
    /// The draft model that is loaded with it.
    #[schema(required)]
    draft_model: Option<String>,
    load_ms: Millis,
    /// What the model added to the worker's memory, in bytes.
    memory: Memory,
}

/// A worker process.
#[derive(Default, Serialize, ToSchema)]
struct Worker {
    /// `ready`, `starting`, `restarting`, `down` or `stopping`; the reason is in the log, because it may name files.
    state: &'static str,
    /// The version of ONNX Runtime; this and what follows while the worker is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
}

/// `GET /v1/models`.
pub(crate) async fn models(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let mut data = Vec::new();
    for entry in allowed(&request, &state) {
        data.push(Model::new(&state, entry, None));
        let adapters = state.models.adapters.of_model(model_registry::id(entry));
        data.extend(adapters.iter().map(|adapter| Model::new(&state, entry, Some(adapter))));
    }
    HttpResponse::Ok().json(ModelList { object: "list", data })
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(
    request: HttpRequest,
    state: web::Data<AppState>,
    path: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = path.into_inner();
    check_model(&request, state.models.resolve(&id))?;
    let (entry, adapter) = (state.models.entry(Some(&id))?, state.models.adapter(Some(&id))?);
    Ok(HttpResponse::Ok().json(Model::new(&state, entry, adapter.as_deref())))
}

/// The models that the key of a request may use.
pub(crate) fn allowed<'a>(
    request: &'a HttpRequest,
    state: &'a AppState,
) -> impl Iterator<Item = &'a ModelEntry> {
    state.models.entries().filter(|entry| check_model(request, model_registry::id(entry)).is_ok())
}

impl<'a> Model<'a> {
    /// The model of `entry`, or an adapter of it.
    fn new(state: &AppState, entry: &'a ModelEntry, adapter: Option<&ServedAdapter>) -> Self {
        let (id, created, eka) = match entry {
            Ok(text) => (&text.card().id, text.card().created, ModelDetails::available(state, text)),
            Err(Unavailable { id, reason }) => (id, 0, ModelDetails::Unavailable { error: reason }),
        };
        let of_base = Self {
            id: id.into(),
            object: "model",
            created,
            owned_by: "eka",
            parent: None,
            adapter: None,
            eka,
        };
        let Some(adapter) = adapter else { return of_base };
        let details = AdapterDetails {
            rank: adapter.rank,
            targets: adapter.targets.clone(),
            bytes: adapter.bytes,
            exclusive: adapter.exclusive.clone(),
        };
        Self {
            id: format!("{id}:{}", adapter.name).into(),
            created: adapter.created,
            parent: Some(id),
            adapter: Some(details),
            ..of_base
        }
    }
}

impl ModelDetails<'_> {
    fn available(state: &AppState, text: &Text) -> Self {
        let card = text.card();
        let id = card.id.as_str().into();
        let readiness = state.readiness.borrow();
        let devices = (state.devices)().into_iter().map(|(device, readiness)| {
            let loaded = LoadedModel::find(&readiness, &id);
            OnDevice { device, loaded, worker: (&readiness).into() }
        });
        Self::Available {
            context_length: state.context_length(text),
            vocabulary: card.vocabulary,
            has_chat_template: card.has_chat_template,
            loaded: LoadedModel::find(&readiness, &id).map(Box::new),
            worker: Box::new((&*readiness).into()),
            devices: devices.collect(),
        }
    }
}

impl LoadedModel {
    fn find(readiness: &Readiness, id: &ModelId) -> Option<Self> {
        match readiness {
            Readiness::Ready(slot) => slot.model(id).map(Self::from),
            _ => None,
        }
    }
}

impl From<&ModelReport> for LoadedModel {
    fn from(report: &ModelReport) -> Self {
        let nodes = report.placement.nodes();
        Self {
            placement: nodes.map(|(provider, nodes)| (provider.to_owned(), nodes)).collect(),
            operators: report.placement.0.clone(),
            capacity: report.capacity,
            decode_threads: report.decode_threads,
            prefill_threads: report.prefill_threads,
            draft_model: report.draft.as_ref().map(|id| id.0.clone()),
            load_ms: report.load_time.into(),
            memory: report.took(),
        }
    }
}

impl From<&Readiness> for Worker {
    fn from(readiness: &Readiness) -> Self {
        let state = readiness.as_str();
        match readiness {
            Readiness::Ready(SlotReport { runtime, memory, .. }) => Self {
                state,
                runtime: Some(runtime.runtime.clone()),
                device: Some(runtime.device.clone()),
                threads: Some(runtime.threads),
                memory: Some(*memory),
            },
            _ => Self { state, ..Self::default() },
        }
    }
}
