use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use serde_json::{Value, json};

use super::{DOCUMENTS, document};

use crate::{
    executor::Deadlines,
    http::{
        formats::{
            chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
            responses::Responses,
        },
        request::{
            fields::{Fields, asked},
            generation::Rules,
            tools::ToolRules,
        },
        routes::ROUTES,
    },
    text::ToolSupport,
};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

const RULES: Rules = Rules {
    vocabulary: 1000,
    deadlines: Deadlines { queue: Duration::from_secs(60), total: Duration::from_secs(60) },
    temperature: 1.0,
    tools: ToolRules { support: ToolSupport::None, is_marker_special: false },
};

/// The schema that a reference is to, or the schema itself.
fn resolve(schema: &Value) -> &Value {
    let reference = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    reference.map_or(schema, |reference| DOCUMENT.pointer(reference).unwrap())
}

/// Names of all properties, those of its parts among them.
fn properties(schema: &Value) -> BTreeSet<String> {
    let schema = resolve(schema);
    let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(properties);
    let own = schema["properties"].as_object().into_iter().flat_map(|own| own.keys().cloned());
    parts.chain(own).collect()
}

fn body_of(route: &str) -> &'static Value {
    let route = route.replace('/', "~1");
    DOCUMENT.pointer(&format!("/paths/{route}/post/requestBody/content/application~1json")).unwrap()
}

/// What is described of a dialect's requests is what it reads, and it reads the examples.
fn check<D: ApiFormat>(least: &Value) {
    let body = body_of(D::ROUTE);
    let mut read = read::<D>(least);
    // Read before the dialect is asked.
    read.insert("model".into());
    read.extend(D::OTHERS.iter().copied().flatten().map(|field| field.name.to_owned()));
    assert_eq!(properties(&body["schema"]), read, "{}", D::ROUTE);
    for (name, example) in body["examples"].as_object().unwrap() {
        assert!(!read_all::<D>(&example["value"]).is_empty(), "{name}");
    }
}

fn read_all<D: ApiFormat>(body: &Value) -> BTreeSet<String> {
    let read = read::<D>(body);
    let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    D::ask(&mut fields, &RULES).unwrap();
    fields.finish(D::OTHERS).unwrap();
    read
}

fn read<D: ApiFormat>(body: &Value) -> BTreeSet<String> {
    let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    asked::take();
    D::ask(&mut fields, &RULES).unwrap();
    asked::take()
}

#[test]
fn what_is_described_is_what_is_read() {
    check::<GenerateLite>(&json!({ "prompt": "a" }));
    check::<Completions>(&json!({ "prompt": "a" }));
    check::<Chat>(&json!({ "messages": [{ "role": "user", "content": "a" }] }));
    check::<Responses>(&json!({ "input": "a" }));
}

#[test]
fn every_route_is_described_and_no_other() {
    let described = DOCUMENT["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let served = ROUTES.iter().map(|route| format!("{} {}", route.info.method, route.info.path));
    assert_eq!(described.collect::<BTreeSet<_>>(), served.collect());
}

#[test]
fn fields_that_are_let_pass_are_described_with_what_they_may_be() {
    let own = &DOCUMENT["components"]["schemas"]["ChatRequest"]["allOf"][1]["properties"];
    assert_eq!(own["modalities"]["enum"], json!([null, ["text"]]));
    assert_eq!(own["store"]["enum"], json!([null, false]));
    assert_eq!(own["audio"]["enum"], json!([null]));
    assert_eq!(own["user"].get("enum"), None);
}

#[test]
fn the_page_for_people_has_every_route_and_every_shape() {
    let page = DOCUMENTS.docs.as_ref().unwrap();
    let shapes = DOCUMENT["components"]["schemas"].as_object().unwrap();
    // As minijinja escapes it.
    let shown = |path: &str| page.contains(&format!("<code>{}</code>", path.replace('/', "&#x2f;")));
    assert!(ROUTES.iter().all(|route| shown(route.info.path)));
    assert!(shapes.keys().all(|name| page.contains(&format!("id=\"schema-{name}\""))));
}
