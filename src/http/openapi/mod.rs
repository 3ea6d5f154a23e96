//! `GET /openapi.json`: what is served, as an OpenAPI 3.1 document made from types, and `GET /docs`: the same for people.
//!
//! Requests describe themselves ([`shape`](super::request::shape)); the parser reads the same declarations.

#[expect(dead_code, reason = "the types are described and never made")]
mod answers;
mod docs;
#[expect(dead_code, reason = "the functions carry what is said of routes")]
mod paths;
#[cfg(test)]
mod tests;
#[expect(dead_code, reason = "the types are described and never made")]
mod texts;

use std::sync::LazyLock;

use actix_web::{HttpResponse, http::header::ContentType};
use serde_json::{Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

pub(super) use self::docs::PAGE;
/// All of it, as utoipa makes it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "eka",
        description = "Serves fine-tuned language models, one answer at a time. Fields that are null are as absent, and whole \
                       numbers may be written as 5.0. Fields that are not described are refused by name, unless the \
                       server is set to ignore them; it then names them in the header x-eka-ignored-fields."
    ),
    paths(
        paths::generate_lite, paths::completions, paths::chat_completions, paths::responses, paths::tokenize,
        paths::detokenize, paths::apply_template, paths::models, paths::model, paths::load_model, paths::unload_model,
        paths::trim, paths::cache, paths::cached, paths::log, paths::drain, paths::livez, paths::readyz, paths::startupz, paths::metrics,
        paths::index, paths::openapi, paths::docs, paths::slot, paths::page_file,
    ),
    components(schemas(answers::ChatCompletionChunk, answers::GeneratedDelta)),
    tags(
        (name = "openai", description = "As OpenAI has it."),
        (name = "eka", description = "eka's own."),
        (name = "texts", description = "Texts, tokens and templates, without a model's work."),
        (name = "admin", description = "For whoever runs the server: with an admin key, or where there are no keys, from the \
                                        machine itself."),
        (name = "operation", description = "For orchestrators, scrapers and the curious. Probes want no key."),
    ),
    modifiers(&Keys),
)]
struct Document;

/// How keys are shown. A server without keys wants none.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Api-Key")));
        components.add_security_scheme("bearer", bearer);
        components.add_security_scheme("header", header);
        let none: [&str; 0] = [];
        document.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new("bearer", none),
            SecurityRequirement::new("header", none),
        ]);
    }
}

/// The document.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // Its types are maps with texts for keys, which JSON always has.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    // An empty list is both.
    if let Some(list) = document["components"]["schemas"]["TokenList"].as_object_mut()
        && let Some(either) = list.remove("oneOf")
    {
        list.insert("anyOf".into(), either);
    }
    // Whoever has nothing to say of it sends no body.
    if let Some(body) = document.pointer_mut("/paths/~1admin~1models~1{id}~1load/post/requestBody") {
        body["required"] = false.into();
    }
    // A stream is no single text: what its events are, the words say.
    for path in document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut()) {
        if let Some(content) = path.pointer_mut("/post/responses/200/content/text~1event-stream") {
            *content = json!({});
        }
    }
    document
});

/// The document as it is sent.
static JSON: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());

/// Builds the static documents, so that no request waits for them.
pub(super) fn prepare() {
    LazyLock::force(&JSON);
    LazyLock::force(&PAGE);
}

/// `GET /openapi.json`.
pub(super) async fn json() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(JSON.as_str())
}
