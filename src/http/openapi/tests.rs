use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Value, json};

use super::{DOCUMENTS, document};
use crate::http::{
    request::{
        chat::ChatRequest,
        completions::CompletionRequest,
        fields::Fields,
        generate_lite::GenerateLiteRequest,
        model_request::ModelRequest,
        responses::ResponseCall,
        tokenize::{ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest},
    },
    routes::ROUTES,
};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The examples of a route are requests that it accepts.
fn check_examples<R: ModelRequest>(route: &str) {
    let route = route.replace('/', "~1");
    let body = format!("/paths/{route}/post/requestBody/content/application~1json");
    let body = DOCUMENT.pointer(&body).unwrap();
    for (name, example) in body["examples"].as_object().unwrap() {
        let fields = Fields::parse(example["value"].to_string().as_bytes()).unwrap();
        assert!(R::parse(fields).is_ok(), "{name}");
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
