//! Stored responses of `/v1/responses`: reading, deleting, and cancelling, which only background responses allow.

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::{error::ApiError, middleware::auth, state::AppState};

/// A response was deleted.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedResponse {
    id: String,
    /// Always `response`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn read(
    request: HttpRequest,
    state: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let key = auth::key(&request);
    let stored = state.stored_responses.of(key.as_deref().map(|key| key.name()));
    let document = stored.and_then(|stored| stored.document(&id));
    let document = document.ok_or_else(|| not_found(&id))?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(document.to_string()))
}

/// `DELETE /v1/responses/{id}`.
pub(crate) async fn delete(
    request: HttpRequest,
    state: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let key = auth::key(&request);
    let stored = state.stored_responses.of(key.as_deref().map(|key| key.name()));
    if !stored.is_some_and(|stored| stored.remove(&id)) {
        return Err(not_found(&id));
    }
    let deleted = DeletedResponse { id: id.into_inner(), object: "response", deleted: true };
    Ok(HttpResponse::Ok().json(deleted))
}

/// `POST /v1/responses/{id}/cancel`.
pub(crate) async fn cancel(_: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let instead = "close the connection to end a response that is being generated";
    Err(ApiError::NotImplemented { what: "cancelling a response in the background", instead })
}

fn not_found(id: &str) -> ApiError {
    ApiError::ResponseNotFound { id: id.chars().take(128).collect() }
}
