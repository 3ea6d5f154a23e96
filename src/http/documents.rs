//! Texts that are made from the route table once.

use std::{
    io::Write,
    sync::{LazyLock, OnceLock},
};

use actix_web::web;
use flate2::{Compression, write::GzEncoder};

/// A text of the server's own, with its gzip form. Answers share both: a client that reads nothing, and asks for a thousand of
/// them, takes no memory for each.
pub(crate) struct Page {
    /// Its content type.
    pub(crate) kind: &'static str,
    pub(crate) text: &'static str,
    gzip: OnceLock<Option<web::Bytes>>,
}

impl Page {
    pub(crate) const fn new(kind: &'static str, text: &'static str) -> Self {
        Self { kind, text, gzip: OnceLock::new() }
    }

    /// The text in gzip's format, which is made when a client first asks for it.
    pub(crate) fn gzip(&self) -> Option<web::Bytes> {
        let compress = || {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            let done = encoder.write_all(self.text.as_bytes()).and_then(|()| encoder.finish());
            done.map(web::Bytes::from).ok()
        };
        self.gzip.get_or_init(compress).clone()
    }
}

/// What is made from the route table.
pub(crate) struct Documents {
    /// The list of routes for `GET /`, a line each.
    pub(crate) index: String,
    /// The OpenAPI document as JSON.
    pub(crate) openapi: Page,
    /// The OpenAPI document as a page, or why its template fails.
    pub(crate) docs: Result<Page, String>,
    /// The `ETag` of all pages.
    pub(crate) etag: String,
}

/// The documents, which are made on first use.
pub(crate) type SharedDocuments = web::Data<&'static LazyLock<Documents>>;
