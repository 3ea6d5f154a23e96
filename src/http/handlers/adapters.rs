//! The adapters of a request, and `POST /admin/adapters`.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    http::{
        adapter_registry::ServedAdapter,
        error::ApiError,
        field_error::FieldError,
        model_registry::ModelRegistry,
        request::{AdapterChoice, ApiRequest},
        state::AppState,
    },
    job::JobAdapter,
    metrics::AdapterLabel,
};

/// The adapters after a scan, and what has changed. An adapter is written as `MODEL:NAME`.
#[derive(Serialize, ToSchema)]
pub(crate) struct ScannedAdapters {
    adapters: Vec<String>,
    added: Vec<String>,
    replaced: Vec<String>,
    removed: Vec<String>,
    /// Number of adapters that cannot be used; the log has the reasons.
    refused: usize,
}

/// `POST /admin/adapters`: reads the directories of adapters again.
pub(crate) async fn scan(request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let registry = request.state.models.adapters.clone();
    let report = web::block(move || registry.scan_and_log()).await;
    let report = report.map_err(|error| ApiError::Internal { message: error.to_string() })?;
    let models = request.state.models.usable_ids();
    let of_model = |model: &String| {
        let all = request.state.models.adapters.of_model(model);
        all.iter().map(|adapter| format!("{model}:{}", adapter.name)).collect::<Vec<_>>()
    };
    Ok(HttpResponse::Ok().json(ScannedAdapters {
        adapters: models.iter().flat_map(of_model).collect(),
        added: report.added,
        replaced: report.replaced,
        removed: report.removed,
        refused: report.refused.len(),
    }))
}

/// Counts a request with these adapters.
pub(crate) fn count(state: &AppState, model: &str, adapters: &[JobAdapter]) {
    for JobAdapter { name, .. } in adapters {
        let adapter = state.models.adapters.label(model, name);
        state.metrics.adapter_requests.get_or_create(&AdapterLabel { adapter }).inc();
    }
}

/// An adapter as a job has it.
pub(crate) fn whole(adapter: &ServedAdapter) -> JobAdapter {
    weighted(adapter, 1.0)
}

fn weighted(adapter: &ServedAdapter, weight: f32) -> JobAdapter {
    JobAdapter { name: adapter.name.clone(), hash: adapter.hash, weight }
}

/// The adapters of a request for `model`: the one in the model's name, or those of the field `adapters`.
///
/// # Errors
/// When one does not exist, when both are given, or when adapters cannot be mixed.
pub(crate) fn chosen(
    models: &ModelRegistry,
    model: &str,
    named: Option<&Arc<ServedAdapter>>,
    choices: &[AdapterChoice],
) -> Result<Vec<JobAdapter>, ApiError> {
    if let Some(named) = named {
        if !choices.is_empty() {
            let message = format!(
                "cannot be combined with a model name that has the adapter {:?}; send model {model:?} and list it here",
                named.name
            );
            return Err(FieldError::value("adapters", message).into());
        }
        return Ok(vec![whole(named)]);
    }
    let mut adapters = Vec::with_capacity(choices.len());
    for (index, AdapterChoice { name, weight }) in choices.iter().enumerate() {
        let adapter = models.adapter_of(model, name)?;
        if choices[..index].iter().any(|other| other.name == *name) {
            let message = format!("has {name:?} twice; send it once, with the sum of the weights");
            return Err(FieldError::value("adapters", message).into());
        }
        if let Some(reason) = adapter.exclusive.as_ref().filter(|_| choices.len() > 1) {
            let message = format!("mixes {name:?} with others, and {reason}; send it alone");
            return Err(FieldError::value("adapters", message).into());
        }
        adapters.push(weighted(&adapter, *weight));
    }
    Ok(adapters)
}
