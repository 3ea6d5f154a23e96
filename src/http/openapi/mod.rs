//! `GET /openapi.json`: what is served, as an OpenAPI 3.1 document made from types, and `GET /docs`: the same for people.
//!
//! ```text
//! requests, messages, items, texts, answers (types) ─► paths (routes) ─► Document ─► + what is let pass ─► JSON ─► HTML
//! ```
//!
//! Types describe requests; the parser reads them field by field, for the sake of its errors. Tests hold the two together:
//! every field that is described is read, every field that is read is described, and what the server answers is valid.

#[expect(dead_code, reason = "the types are described and never made")]
mod answers;
mod docs;
#[expect(dead_code, reason = "the types are described and never made")]
mod items;
#[expect(dead_code, reason = "the types are described and never made")]
mod messages;
#[expect(dead_code, reason = "the functions carry what is said of routes")]
mod paths;
#[expect(dead_code, reason = "the types are described and never made")]
mod requests;
#[cfg(test)]
mod tests;
#[expect(dead_code, reason = "the types are described and never made")]
mod texts;

use std::sync::LazyLock;

use actix_web::{HttpResponse, http::header::ContentType};
use serde_json::{Map, Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

pub(super) use self::docs::PAGE;
use crate::http::{
    formats::{
        chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
        responses::Responses,
    },
    request::compat::{self, Kind, Off, OtherField},
};

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

/// The document: the types', and the fields that eka does not have.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // Its types are maps with texts for keys, which JSON always has.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    let objects: [(_, &[&[OtherField]]); 20] = [
        ("GenerateLiteRequest", GenerateLite::OTHERS),
        ("CompletionRequest", Completions::OTHERS),
        ("ChatRequest", Chat::OTHERS),
        ("ResponseRequest", Responses::OTHERS),
        ("TokenizeRequest", &[compat::TOKENIZE]),
        ("ApplyTemplateRequest", &[compat::TEMPLATE]),
        ("StreamOptions", &[compat::STREAM_OPTIONS]),
        ("TextOptions", &[compat::TEXT_OPTIONS]),
        ("NamedSchema", &[]),
        ("Message", &[compat::MESSAGE]),
        ("ToolCall", &[compat::CALL]),
        ("CalledFunction", &[compat::CALLED_FUNCTION]),
        ("Tool", &[compat::TOOL]),
        ("ToolFunction", &[]),
        ("FlatTool", &[compat::TOOL]),
        ("NamedTool", &[]),
        ("InputMessage", &[compat::ITEM]),
        ("InputCall", &[compat::ITEM]),
        ("InputResult", &[compat::ITEM]),
        ("InputPart", &[compat::PART]),
    ];
    for (name, others) in objects {
        close(&mut document["components"]["schemas"][name], others);
    }
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

/// Describes the fields that eka does not have with the values at which that changes nothing, and says that all others
/// must be null.
fn close(schema: &mut Value, others: &[&[OtherField]]) {
    let is_flat = schema.get("allOf").is_none();
    let parts = schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten();
    let own = parts.into_iter().find(|part| part.get("properties").is_some());
    let own = if is_flat { Some(&mut *schema) } else { own };
    if let Some(properties) = own.and_then(|own| own.get_mut("properties")?.as_object_mut()) {
        for field in others.iter().copied().flatten() {
            properties.entry(field.name).or_insert_with(|| describe(&field.off));
        }
    }
    if let Value::Object(schema) = schema {
        schema.remove("additionalProperties");
        schema.insert("unevaluatedProperties".into(), json!({ "type": "null" }));
    }
}

fn describe(off: &Off) -> Value {
    let mut described = match off {
        Off::Any(Kind::List) => json!({ "type": ["array", "null"], "items": {} }),
        Off::Any(kind) => match kind.schema() {
            Some(kind) => json!({ "type": [kind, "null"] }),
            None => json!({}),
        },
        Off::Values(values) => {
            let values = values.iter().map(|value| serde_json::from_str(value).unwrap_or_default());
            json!({ "enum": std::iter::once(Value::Null).chain(values).collect::<Vec<_>>() })
        }
        Off::Object(fields) => {
            let fields: Map<_, _> =
                fields.iter().map(|field| (field.name.to_owned(), describe(&field.off))).collect();
            json!({ "type": ["object", "null"], "properties": fields, "unevaluatedProperties": { "type": "null" } })
        }
        Off::Items(items) => json!({ "type": ["array", "null"], "items": { "enum": items } }),
    };
    described["description"] = "Accepted; at these values it changes nothing in an answer.".into();
    described
}

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
