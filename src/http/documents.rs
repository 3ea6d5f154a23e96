//! Texts that are made from the route table once.

use std::sync::LazyLock;

use actix_web::web;

/// What is made from the route table.
pub(crate) struct Documents {
    /// The list of routes for `GET /`, a line each.
    pub(crate) index: String,
    /// The OpenAPI document as JSON.
    pub(crate) openapi: String,
    /// The OpenAPI document as a page, or why its template fails.
    pub(crate) docs: Result<String, String>,
    /// The `ETag` of all pages.
    pub(crate) etag: String,
}

/// The documents, which are made on first use.
pub(crate) type SharedDocuments = web::Data<&'static LazyLock<Documents>>;
