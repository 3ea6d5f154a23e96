//! The OpenAPI 3.1 document and its page, assembled from the route table.

mod docs;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt::Write, sync::LazyLock};

use serde_json::{Value, json};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApiBuilder, PathItem, PathsBuilder,
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};

use super::{
    documents::{Documents, Page},
    handlers::pages,
    routes::ROUTES,
};

const ABOUT: &str = "Serves fine-tuned language models, one answer at a time. A field that is null is treated as absent, and \
     integers may be written as 5.0. Unknown fields are refused by name, or with server.unknown_fields = warn ignored and \
     listed in the header x-eka-ignored-fields.";

/// Tags of the routes, with their descriptions.
const TAGS: [(&str, &str); 7] = [
    ("openai", "OpenAI's API."),
    ("anthropic", "Anthropic's API."),
    ("ollama", "Ollama's API, without its commands that change models."),
    ("eka", "eka's own API."),
    ("texts", "Texts, tokens and chat templates, without running the model."),
    ("admin", "Administration: with an admin key, or without keys from the server's own machine."),
    ("operation", "Probes, metrics and documentation. Probes need no key."),
];

/// The documents that are made from the route table.
pub(super) static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| {
    let document = document();
    let docs = docs::render(&document);
    let mut index = String::new();
    for route in ROUTES.iter() {
        // Writing to a `String` does not fail.
        let _ = writeln!(index, "{:4} {:25} {}", route.info.method, route.info.path, route.summary);
    }
    let etag = pages::etag(docs.as_deref().unwrap_or_default());
    // Made once, and used until the process ends.
    let docs = docs.map(|text| Page::new(pages::HTML, text.leak()));
    let openapi = Page::new("application/json", document.to_string().leak());
    Documents { index, openapi, docs, etag }
});

/// The OpenAPI document.
fn document() -> Value {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Api-Key")));
    let components =
        ComponentsBuilder::new().security_scheme("bearer", bearer).security_scheme("header", header);
    let mut paths = PathsBuilder::new();
    let mut schemas = BTreeMap::new();
    for route in ROUTES.iter() {
        schemas.extend(&route.schemas);
        let item = PathItem::new(route.http_method(), route.operation.clone());
        paths = paths.path(route.info.path, item);
    }
    let none: [&str; 0] = [];
    let document = OpenApiBuilder::new()
        .info(InfoBuilder::new().title("eka").version(env!("CARGO_PKG_VERSION")).description(Some(ABOUT)))
        .paths(paths)
        .components(Some(components.build()))
        // A server without keys needs none.
        .security(Some([
            SecurityRequirement::default(),
            SecurityRequirement::new("bearer", none),
            SecurityRequirement::new("header", none),
        ]))
        .tags(Some(TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build())))
        .build();
    let mut document = json!(document);
    document["components"]["schemas"] = json!(schemas);
    document
}
