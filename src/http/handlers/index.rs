//! `GET /`: the list of routes, or the web page.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{ContentType, VARY},
    web,
};

use super::{models::allowed, ui};
use crate::http::{documents::SharedDocuments, model_registry, state::AppState};

/// `GET /`.
pub(crate) async fn index(
    request: HttpRequest,
    state: web::Data<AppState>,
    documents: SharedDocuments,
) -> HttpResponse {
    if ui::is_wanted(&request) {
        return ui::index(&request, &documents.etag);
    }
    let models = allowed(&request, &state).filter(|entry| entry.is_ok()).map(model_registry::id);
    let models = models.collect::<Vec<_>>().join(", ");
    let list = format!("eka serves {models}, one answer at a time.\n\n{}", documents.index);
    HttpResponse::Ok().insert_header(ContentType::plaintext()).insert_header((VARY, "accept")).body(list)
}
