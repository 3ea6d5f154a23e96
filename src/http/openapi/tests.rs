use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
    time::Duration,
};

use jsonschema::Validator;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Map, Value, json};

use super::{DOCUMENTS, document};
use crate::{
    executor::Deadlines,
    http::{
        request::{
            ApplyTemplateRequest, CacheRequest, ChatRequest, CompletionRequest, DetokenizeRequest, Fields,
            GenerateLiteRequest, GenerateRequest, LoadRequest, ReadObject, RequestContext, ResponseCall,
            TokenizeRequest, ToolContext,
        },
        routes::ROUTES,
    },
    job::SamplingDefaults,
    text::ToolSupport,
    units::Tokens,
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
    let parts = DOCUMENT["components"]["schemas"]["ChatRequest"]["allOf"].as_array().unwrap();
    let own = &parts.last().unwrap()["properties"];
    assert_eq!(own["modalities"]["enum"], json!([null, ["text"]]));
    assert_eq!(own["store"]["enum"], json!([null, false]));
    assert_eq!(own["audio"]["enum"], json!([null]));
    assert_eq!(own["user"].get("enum"), None);
}

#[test]
fn the_documentation_page_has_every_route_and_every_schema() {
    let page = DOCUMENTS.docs.as_ref().unwrap().text;
    let shapes = DOCUMENT["components"]["schemas"].as_object().unwrap();
    // As minijinja escapes it.
    let shown = |path: &str| page.contains(&format!("<code>{}</code>", path.replace('/', "&#x2f;")));
    assert!(ROUTES.iter().all(|route| shown(route.info.path)));
    assert!(shapes.keys().all(|name| page.contains(&format!("id=\"schema-{name}\""))));
    // Limits belong to each alternative.
    assert!(page.contains("integer 1 to 4294967295 or <code>-1</code>"));
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
    let likely = json!([
        null, true, false, "", "a", "none", "auto", "save", "delete", "10m", "-1.5h", "1e3", " 7 s",
        -1, 0, 1, 2.0, 5, 0.1, 1.000_000_01, 2.000_000_01, 100.000_001, 10_000_000_000_000_000_000_u64,
        [], [1, 2.0], ["a"], [""], [[]], [[1]], [[1, -2.5]], {}, { "a": null }, { "7": 1, "8": null },
        { "type": "disabled", "a": null },
        { "effort": null, "summary": "auto", "other": null },
        { "include_usage": true, "include_obfuscation": null },
        { "type": "text" },
        { "type": "json_object", "schema": {} },
        { "type": "json_schema", "json_schema": named },
        { "format": { "type": "json_schema", "name": "a", "schema": {} }, "verbosity": "low" },
        { "type": "function", "name": "f" },
        [{ "type": "function", "function": { "name": "f", "parameters": {}, "strict": null } }],
        [{ "type": "function", "name": "f", "description": null }],
        [{ "role": "user", "content": "a" }],
        [{ "role": "assistant", "content": null, "tool_calls": [call], "refusal": null }],
        [{ "role": "tool", "tool_call_id": "a", "content": [{ "type": "text", "text": "a" }] }],
        [{ "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "id": "b" }],
        [{ "type": null, "role": "user", "content": [{ "type": "input_text", "text": "", "logprobs": [] }] }],
    ]);
    let likely = likely.as_array().unwrap().clone();
    let number = prop_oneof![any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from)];
    prop_oneof![8 => select(likely), 1 => number, 1 => ".{0,3}".prop_map(Value::from)]
}

/// `base` with some of the fields of `R`, if `R` accepts it.
fn accepted<R: ReadObject>(fields: &[(Index, Value)], base: &Value) -> Option<(R, Value)> {
    let mut body = base.clone();
    for (name, value) in fields {
        body[name.get(&REQUESTS[R::NAME].0)] = value.clone();
    }
    let request = R::read(Fields::parse(body.to_string().as_bytes()).unwrap()).ok()?;
    Some((request, body))
}

fn check_schema<R: ReadObject>(fields: &[(Index, Value)], base: &Value) -> Result<(), TestCaseError> {
    let Some((_, body)) = accepted::<R>(fields, base) else { return Ok(()) };
    let wrong: Vec<_> = REQUESTS[R::NAME].1.iter_errors(&body).map(|error| error.to_string()).collect();
    prop_assert!(wrong.is_empty(), "{} {body}: {wrong:#?}", R::NAME);
    Ok(())
}

static CONTEXT: LazyLock<RequestContext<'_>> = LazyLock::new(|| RequestContext {
    vocabulary: 100,
    end_tokens: &[2],
    deadlines: Deadlines { queue: Duration::from_secs(1), total: Duration::from_secs(2) },
    tools: ToolContext { format: ToolSupport::of("").format(), is_marker_special: false },
    sampling: SamplingDefaults::default(),
    has_chat_template: true,
    fill_in_middle: None,
    stored: None,
});

fn check_limits<R: GenerateRequest>(fields: &[(Index, Value)], base: &Value) {
    let params = accepted::<R>(fields, base).and_then(|(request, _)| request.resolve(&CONTEXT).ok());
    let Some(params) = params else { return };
    assert!((0.0..=2.0).contains(&params.sampling.temperature));
    assert!(params.sampling.logit_bias.iter().all(|(id, bias)| *id < 100 && bias.abs() <= 100.0));
    assert!(params.stop_token_ids.iter().all(|id| *id < 100));
    assert!((1..=8).contains(&params.choices) && params.scores.is_none_or(|scores| scores.top <= 20));
    assert!(params.stop.iter().all(|stop| !stop.is_empty()));
    assert!(params.terms.deadlines.total <= CONTEXT.deadlines.total && params.max_new != Some(Tokens(0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8_000))]

    #[test]
    fn every_accepted_request_is_valid_by_the_published_schema(
        fields in vec((any::<Index>(), field_value()), 0..4),
    ) {
        let messages = json!({ "messages": [{ "role": "user", "content": "a" }] });
        check_schema::<GenerateLiteRequest>(&fields, &json!({ "prompt": "a" }))?;
        check_schema::<CompletionRequest>(&fields, &json!({ "prompt": "a" }))?;
        check_schema::<ChatRequest>(&fields, &messages)?;
        check_schema::<ResponseCall>(&fields, &json!({ "input": "a" }))?;
        check_schema::<TokenizeRequest>(&fields, &json!({ "content": "a" }))?;
        check_schema::<CacheRequest>(&fields, &json!({ "action": "save", "name": "a" }))?;
        check_schema::<LoadRequest>(&fields, &json!({}))?;
    }

    #[test]
    fn whatever_is_accepted_is_within_the_limits(fields in vec((any::<Index>(), field_value()), 0..5)) {
        check_limits::<GenerateLiteRequest>(&fields, &json!({ "prompt": "a" }));
        check_limits::<CompletionRequest>(&fields, &json!({ "prompt": "a" }));
        check_limits::<ChatRequest>(&fields, &json!({ "messages": [{ "role": "user", "content": "a" }] }));
        check_limits::<ResponseCall>(&fields, &json!({ "input": "a" }));
    }
}
