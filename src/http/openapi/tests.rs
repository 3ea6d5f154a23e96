use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use jsonschema::Validator;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::{DOCUMENTS, document};
use crate::http::{
    request::{
        admin::{CacheRequest, LoadRequest},
        chat::ChatRequest,
        completions::CompletionRequest,
        generate_lite::GenerateLiteRequest,
        responses::ResponseCall,
        schema::{Fields, ReadObject},
        tokenize::{ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest},
    },
    routes::ROUTES,
};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The examples of a route are requests that it accepts.
fn check_examples<R: ReadObject>(route: &str) {
    let route = route.replace('/', "~1");
    let body = format!("/paths/{route}/post/requestBody/content/application~1json");
    let body = DOCUMENT.pointer(&body).unwrap();
    for (name, example) in body["examples"].as_object().unwrap() {
        let fields = Fields::parse(example["value"].to_string().as_bytes()).unwrap();
        assert!(R::read(fields).is_ok(), "{name}");
    }
}

#[test]
fn examples_are_requests() {
    check_examples::<GenerateLiteRequest>("/generate-lite");
    check_examples::<CompletionRequest>("/v1/completions");
    check_examples::<ChatRequest>("/v1/chat/completions");
    check_examples::<ResponseCall>("/v1/responses");
    check_examples::<TokenizeRequest>("/tokenize");
    check_examples::<DetokenizeRequest>("/detokenize");
    check_examples::<ApplyTemplateRequest>("/apply-template");
}

#[test]
fn exactly_the_routes_are_described() {
    let described = DOCUMENT["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let served = ROUTES.iter().map(|route| format!("{} {}", route.info.method, route.info.path));
    assert_eq!(described.collect::<BTreeSet<_>>(), served.collect());
}

#[test]
fn compatibility_fields_are_described_by_their_accepted_values() {
    let own = &DOCUMENT["components"]["schemas"]["ChatRequest"]["allOf"][1]["properties"];
    assert_eq!(own["modalities"]["enum"], json!([null, ["text"]]));
    assert_eq!(own["store"]["enum"], json!([null, false]));
    assert_eq!(own["audio"]["enum"], json!([null]));
    assert_eq!(own["user"].get("enum"), None);
}

#[test]
fn the_documentation_page_has_every_route_and_every_schema() {
    let page = DOCUMENTS.docs.as_ref().unwrap();
    let shapes = DOCUMENT["components"]["schemas"].as_object().unwrap();
    // As minijinja escapes it.
    let shown = |path: &str| page.contains(&format!("<code>{}</code>", path.replace('/', "&#x2f;")));
    assert!(ROUTES.iter().all(|route| shown(route.info.path)));
    assert!(shapes.keys().all(|name| page.contains(&format!("id=\"schema-{name}\""))));
}

/// The names of the fields of a schema, with those of the schemas that it includes.
fn field_names(schema: &Value, names: &mut BTreeSet<String>) {
    names.extend(schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned());
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let included = part["$ref"].as_str().and_then(|path| DOCUMENT.pointer(&path[1..]));
        field_names(included.unwrap_or(part), names);
    }
}

/// The fields of a kind of request, and its schema as a validator.
static REQUESTS: LazyLock<BTreeMap<&str, (Vec<String>, Validator)>> = LazyLock::new(|| {
    let names =
        ["GenerateLiteRequest", "CompletionRequest", "ChatRequest", "ResponseRequest", "TokenizeRequest"];
    let names = names.into_iter().chain(["CacheRequest", "LoadRequest"]);
    names
        .map(|name| {
            let mut fields = BTreeSet::from(["action".to_owned(), "name".to_owned()]);
            field_names(&DOCUMENT["components"]["schemas"][name], &mut fields);
            let mut schema = json!({ "$ref": format!("#/components/schemas/{name}") });
            schema["components"] = DOCUMENT["components"].clone();
            let validator = jsonschema::options().with_draft(jsonschema::Draft::Draft202012);
            (name, (fields.into_iter().collect(), validator.build(&schema).unwrap()))
        })
        .collect()
});

/// A value that some field accepts, or any other.
fn field_value() -> impl Strategy<Value = Value> {
    let call = json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": {} } });
    let named = json!({ "name": null, "schema": {}, "strict": true });
    let likely = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(""),
        json!("a"),
        json!("none"),
        json!("auto"),
        json!("save"),
        json!("delete"),
        json!("10m"),
        json!("-1.5h"),
        json!("1e3"),
        json!(" 7 s"),
        json!(-1),
        json!(0),
        json!(1),
        json!(2.0),
        json!(5),
        json!(0.1),
        json!(1.000_000_01),
        json!(2.000_000_01),
        json!(100.000_001),
        json!(10_000_000_000_000_000_000_u64),
        json!([]),
        json!([1, 2.0]),
        json!(["a"]),
        json!([""]),
        json!([[]]),
        json!([[1]]),
        json!([[1, -2.5]]),
        json!({}),
        json!({ "a": null }),
        json!({ "7": 1, "8": null }),
        json!({ "type": "disabled", "a": null }),
        json!({ "effort": null, "summary": "auto", "other": null }),
        json!({ "include_usage": true, "include_obfuscation": null }),
        json!({ "type": "text" }),
        json!({ "type": "json_object", "schema": {} }),
        json!({ "type": "json_schema", "json_schema": named }),
        json!({ "format": { "type": "json_schema", "name": "a", "schema": {} }, "verbosity": "low" }),
        json!({ "type": "function", "name": "f" }),
        json!([{ "type": "function", "function": { "name": "f", "parameters": {}, "strict": null } }]),
        json!([{ "type": "function", "name": "f", "description": null }]),
        json!([{ "role": "user", "content": "a" }]),
        json!([{ "role": "assistant", "content": null, "tool_calls": [call], "refusal": null }]),
        json!([{ "role": "tool", "tool_call_id": "a", "content": [{ "type": "text", "text": "a" }] }]),
        json!([{ "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "id": "b" }]),
        json!([{ "type": null, "role": "user", "content": [{ "type": "input_text", "text": "", "logprobs": [] }] }]),
    ];
    let number = prop_oneof![any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from)];
    prop_oneof![8 => select(likely), 1 => number, 1 => ".{0,3}".prop_map(Value::from)]
}

fn check_accepted_is_valid<R: ReadObject>(
    fields: &[(prop::sample::Index, Value)],
    base: Value,
) -> Result<(), TestCaseError> {
    let (names, validator) = &REQUESTS[R::NAME];
    let mut body = base;
    for (name, value) in fields {
        body[name.get(names)] = value.clone();
    }
    if R::read(Fields::parse(body.to_string().as_bytes()).unwrap()).is_ok() {
        let wrong: Vec<_> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
        prop_assert!(wrong.is_empty(), "{} {body}: {wrong:#?}", R::NAME);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn every_accepted_request_is_valid_by_the_published_schema(
        fields in vec((any::<prop::sample::Index>(), field_value()), 0..4),
    ) {
        let messages = json!([{ "role": "user", "content": "a" }]);
        check_accepted_is_valid::<GenerateLiteRequest>(&fields, json!({ "prompt": "a" }))?;
        check_accepted_is_valid::<CompletionRequest>(&fields, json!({ "prompt": "a" }))?;
        check_accepted_is_valid::<ChatRequest>(&fields, json!({ "messages": messages }))?;
        check_accepted_is_valid::<ResponseCall>(&fields, json!({ "input": "a" }))?;
        check_accepted_is_valid::<TokenizeRequest>(&fields, json!({ "content": "a" }))?;
        check_accepted_is_valid::<CacheRequest>(&fields, json!({ "action": "save", "name": "a" }))?;
        check_accepted_is_valid::<LoadRequest>(&fields, json!({}))?;
    }
}
