//! Adds the compatibility fields to the schemas of requests, and closes them against unknown fields.

use serde_json::{Map, Value, json};

use crate::http::{
    formats::{
        chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
        responses::Responses,
    },
    request::compat::{self, Kind, Off, OtherField},
};

/// Closes the schemas of all requests.
pub(super) fn close_requests(document: &mut Value) {
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
}

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
