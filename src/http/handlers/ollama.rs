//! Ollama's routes besides the generating ones.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::models::allowed;
use crate::{
    http::{
        error::ApiError,
        middleware::auth,
        model_registry::ModelEntry,
        request::{ApiRequest, ShowRequest},
        rfc3339::rfc3339,
        state::AppState,
    },
    job::Readiness,
    text::{ModelCard, Text},
};

/// The version of Ollama's API that these routes follow. Clients refuse servers that are too old.
const VERSION: &str = "0.13.0";

/// The answer of `/api/version`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaVersion {
    version: &'static str,
}

/// The answer of `/api/tags`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaModels<'a> {
    models: Vec<OllamaModel<'a>>,
}

/// A model.
#[derive(Serialize, ToSchema)]
struct OllamaModel<'a> {
    name: &'a str,
    model: &'a str,
    modified_at: String,
    /// Of its files, in bytes.
    size: u64,
    digest: &'a str,
    details: OllamaDetails<'a>,
}

/// What a model is.
#[derive(Serialize, ToSchema)]
struct OllamaDetails<'a> {
    /// Always empty.
    parent_model: &'static str,
    /// Always `onnx`.
    format: &'static str,
    family: &'a str,
    families: [&'a str; 1],
    /// Such as `1.2B`.
    parameter_size: String,
    quantization_level: &'a str,
}

/// The answer of `/api/ps`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaRunning<'a> {
    models: Vec<OllamaRunningModel<'a>>,
}

/// A loaded model.
#[derive(Serialize, ToSchema)]
struct OllamaRunningModel<'a> {
    #[serde(flatten)]
    model: OllamaModel<'a>,
    /// Device memory, in bytes.
    size_vram: u64,
    context_length: usize,
}

/// The answer of `/api/show`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaShown<'a> {
    /// Always empty.
    modelfile: &'static str,
    /// Its sampling parameters, one a line.
    parameters: String,
    /// Its chat template.
    template: &'a str,
    details: OllamaDetails<'a>,
    #[schema(value_type = Object)]
    model_info: BTreeMap<String, Value>,
    /// Of `completion`, `tools` and `thinking`.
    capabilities: Vec<&'static str>,
    modified_at: String,
}

/// `GET /api/version`.
pub(crate) async fn version() -> HttpResponse {
    HttpResponse::Ok().json(OllamaVersion { version: VERSION })
}

/// `GET /api/tags`: the models that the key may use.
pub(crate) async fn tags(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let usable = allowed(&request, &state).filter_map(|entry: &ModelEntry| entry.as_ref().ok());
    HttpResponse::Ok().json(OllamaModels { models: usable.map(|text| model(text.card())).collect() })
}

/// `GET /api/ps`: the loaded models that the key may use.
pub(crate) async fn ps(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let readiness = state.readiness.borrow();
    let usable = allowed(&request, &state).filter_map(|entry| entry.as_ref().ok());
    let loaded = usable.filter_map(|text| {
        let Readiness::Ready(slot) = &*readiness else { return None };
        let memory = slot.model(&text.card().id.as_str().into())?.took();
        let device = memory.device.map_or(0, |device| device.used.0);
        let size = memory.resident.map_or(0, |bytes| bytes.0) + device;
        Some(OllamaRunningModel {
            model: OllamaModel { size, ..model(text.card()) },
            size_vram: device,
            context_length: state.context_length(text).0,
        })
    });
    HttpResponse::Ok().json(OllamaRunning { models: loaded.collect() })
}

/// `POST /api/show`.
pub(crate) async fn show(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let ShowRequest { model, name, .. } = request.read().await?;
    let asked = model.or(name);
    let text = auth::model(&request.http, &request.state, asked.as_deref())?;
    Ok(HttpResponse::Ok().json(shown(&request.state, text)))
}

fn shown<'a>(state: &AppState, text: &'a Text) -> OllamaShown<'a> {
    let card = text.card();
    let sampling = card.sampling;
    let numbers = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("repeat_penalty", sampling.repetition_penalty),
    ];
    let mut parameters: Vec<_> =
        numbers.iter().filter_map(|(name, value)| Some(format!("{name} {}", (*value)?))).collect();
    parameters.extend(sampling.top_k.map(|top_k| format!("top_k {top_k}")));
    let info = [
        ("general.architecture".to_owned(), card.architecture.as_str().into()),
        ("general.parameter_count".to_owned(), card.parameters.into()),
        (format!("{}.context_length", card.architecture), state.context_length(text).0.into()),
        (format!("{}.vocab_size", card.architecture), card.vocabulary.into()),
    ];
    let mut capabilities = vec!["completion"];
    if card.has_chat_template {
        capabilities.push("tools");
    }
    if text.reasoning().is_some() {
        capabilities.push("thinking");
    }
    OllamaShown {
        modelfile: "",
        parameters: parameters.join("\n"),
        template: text.templates().next().map_or("", |template| template.source().text()),
        details: details(card),
        model_info: info.into_iter().collect(),
        capabilities,
        modified_at: rfc3339(card.created),
    }
}

fn model(card: &ModelCard) -> OllamaModel<'_> {
    OllamaModel {
        name: &card.id,
        model: &card.id,
        modified_at: rfc3339(card.created),
        size: card.file_bytes,
        digest: &card.fingerprint,
        details: details(card),
    }
}

fn details(card: &ModelCard) -> OllamaDetails<'_> {
    OllamaDetails {
        parent_model: "",
        format: "onnx",
        family: &card.architecture,
        families: [&card.architecture],
        parameter_size: parameter_size(card.parameters),
        quantization_level: &card.weights,
    }
}

/// A number of parameters with one digit after the point.
fn parameter_size(parameters: u64) -> String {
    let (unit, name) = if parameters >= 1_000_000_000 { (1_000_000_000, "B") } else { (1_000_000, "M") };
    format!("{}.{}{name}", parameters / unit, parameters % unit * 10 / unit)
}

/// Routes that change models.
pub(crate) async fn refuse_changes() -> Result<HttpResponse, ApiError> {
    let instead = "export a model with `eka export` and put it into the directory of models.dir";
    Err(ApiError::NotImplemented { what: "changing models by HTTP", instead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_in_millions_and_billions() {
        assert_eq!([135_000_000, 1_235_000_000, 0].map(parameter_size), ["135.0M", "1.2B", "0.0M"]);
    }
}
