//! `GET /openapi.json` and `GET /docs`.

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType};

use super::ui;
use crate::http::{documents::SharedDocuments, error::ApiError};

/// `GET /openapi.json`.
pub(crate) async fn openapi(documents: SharedDocuments) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(documents.openapi.as_str())
}

/// `GET /docs`.
pub(crate) async fn docs(request: HttpRequest, documents: SharedDocuments) -> Result<HttpResponse, ApiError> {
    match &documents.docs {
        Ok(page) => Ok(ui::send_page(&request, &documents.etag, page)),
        Err(message) => Err(ApiError::Internal { message: message.clone() }),
    }
}
