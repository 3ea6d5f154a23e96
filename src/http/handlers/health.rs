//! What orchestrators, scrapers and the curious ask: is it alive, is it ready, what does it serve, how does it do.
//!
//! Alive, ready and full are three different things. A process that answers is alive, whatever its worker does; a
//! server is ready when a worker has the model loaded; and a full queue is neither's business.

use std::fmt::Write;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{ContentType, VARY},
    web,
};
use serde_json::{Value, json};

use super::ui;
use crate::{
    executor::SubmitError,
    http::{
        error::{ApiError, SOON, Unavailable},
        middleware::auth::check_model,
        model_registry::{self, Entry},
        routes::ROUTES,
        state::AppState,
    },
    job::{Memory, ModelId, ModelReport, Readiness, SlotReport},
    metrics::CONTENT_TYPE,
    text::Text,
    units::Millis,
};

/// `GET /livez`: this process answers.
pub(crate) async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "alive" }))
}

/// `GET /readyz`: a request sent now would be worked on.
pub(crate) async fn readyz(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if !state.executor.summary().accepting {
        return Err(SubmitError::Stopped.into());
    }
    match &*state.readiness.borrow() {
        Readiness::Ready(_) => Ok(HttpResponse::Ok().json(ready(&state))),
        Readiness::Starting => Err(ApiError::Loading),
        Readiness::Restarting { reason } => {
            Err(ApiError::WorkerDown { reason: reason.clone(), retry_in: Some(SOON) })
        }
        Readiness::Down { reason, retry_in } => {
            Err(ApiError::WorkerDown { reason: reason.clone(), retry_in: *retry_in })
        }
        Readiness::Stopping => Err(SubmitError::Stopped.into()),
    }
}

/// That a device is ready, and where there are several, how each of them is.
fn ready(state: &AppState) -> Value {
    let mut ready = json!({ "status": "ready" });
    if !state.devices.is_empty() {
        let states = state.devices.iter().map(|(name, seen)| (name.clone(), json!(seen.borrow().as_str())));
        ready["devices"] = Value::Object(states.collect());
    }
    ready
}

/// `GET /startupz`: the model was loaded once, so that liveness may be judged from now on.
pub(crate) async fn startupz(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if state.was_ready() {
        Ok(HttpResponse::Ok().json(json!({ "status": "started" })))
    } else {
        Err(ApiError::Loading)
    }
}

/// `GET /metrics`.
pub(crate) async fn metrics(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let text = state.metrics.render().map_err(|error| ApiError::Internal { message: error.to_string() })?;
    Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(text))
}

/// `GET /v1/models`.
pub(crate) async fn models(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let data: Vec<_> = allowed(&request, &state).map(|entry| model_object(&state, entry)).collect();
    HttpResponse::Ok().json(json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(
    request: HttpRequest,
    state: web::Data<AppState>,
    path: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let asked = path.into_inner();
    check_model(&request, &asked)?;
    Ok(HttpResponse::Ok().json(model_object(&state, state.catalogue.entry(Some(&asked))?)))
}

/// `GET /`: what is served where; for browsers, the page.
pub(crate) async fn index(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    if ui::is_wanted(&request) {
        return ui::document(&request);
    }
    let models: Vec<_> =
        allowed(&request, &state).filter(|entry| entry.is_ok()).map(model_registry::id).collect();
    let mut list = format!("eka serves {}, one answer at a time.\n\n", models.join(", "));
    for route in ROUTES {
        // Writing to a `String` does not fail.
        let _ = writeln!(list, "{:4} {:25} {}", route.method, route.path, route.about);
    }
    HttpResponse::Ok().insert_header(ContentType::plaintext()).insert_header((VARY, "accept")).body(list)
}

/// The models that the key of a request may use.
fn allowed<'a>(request: &'a HttpRequest, state: &'a AppState) -> impl Iterator<Item = &'a Entry> {
    state.catalogue.entries().filter(|entry| check_model(request, model_registry::id(entry)).is_ok())
}

/// OpenAI's model object, with what eka knows besides.
fn model_object(state: &AppState, entry: &Entry) -> Value {
    match entry {
        Ok(text) => available(state, text),
        Err(Unavailable { id, reason }) => json!({
            "id": id,
            "object": "model",
            "created": 0,
            "owned_by": "eka",
            "eka": { "status": "unavailable", "error": reason },
        }),
    }
}

fn available(state: &AppState, text: &Text) -> Value {
    let card = text.card();
    let readiness = state.readiness.borrow();
    let id = card.id.as_str().into();
    let mut object = json!({
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "eka",
        "eka": {
            "status": "available",
            "context_length": state.context_length(text),
            "vocabulary": card.vocabulary,
            "has_chat_template": card.has_chat_template,
            "loaded": loaded_in(&readiness, &id),
            "worker": worker(&readiness),
        },
    });
    if !state.devices.is_empty() {
        let devices = state.devices.iter().map(|(name, seen)| {
            let seen = seen.borrow();
            json!({ "device": name, "loaded": loaded_in(&seen, &id), "worker": worker(&seen) })
        });
        object["eka"]["devices"] = devices.collect();
    }
    object
}

fn loaded_in(readiness: &Readiness, id: &ModelId) -> Option<Value> {
    match readiness {
        Readiness::Ready(slot) => slot.model(id).map(loaded),
        _ => None,
    }
}

/// What is known of a model that is loaded.
fn loaded(report: &ModelReport) -> Value {
    let placement = report.placement.nodes().map(|(provider, nodes)| (provider.to_owned(), json!(nodes)));
    json!({
        "placement": Value::Object(placement.collect()),
        "operators": report.placement,
        "capacity": report.capacity,
        "decode_threads": report.decode_threads,
        "prefill_threads": report.prefill_threads,
        "draft_model": report.draft,
        "load_ms": Millis::from(report.load_time),
        "memory": held(report.took()),
    })
}

fn worker(readiness: &Readiness) -> Value {
    match readiness {
        Readiness::Ready(SlotReport { runtime, memory, .. }) => json!({
            "state": readiness.as_str(),
            "runtime": runtime.runtime,
            "device": runtime.device,
            "threads": runtime.threads,
            "memory": held(*memory),
        }),
        // Their reasons may name paths of this machine, and are in the log.
        _ => json!({ "state": readiness.as_str() }),
    }
}

/// Memory in bytes.
pub(crate) fn held(memory: Memory) -> Value {
    let Memory { resident, anonymous, prefix_cache, device } = memory;
    json!({ "resident": resident, "anonymous": anonymous, "prefix_cache": prefix_cache, "device": device })
}
