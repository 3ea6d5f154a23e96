//! `/openapi.json` against the server that it describes: its examples are accepted, and what comes back matches it.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::serving::{Server, Wish, events};

/// A document whose schemas allow no field that they do not describe, so that a forgotten one is found.
pub(crate) fn closed(mut document: Value) -> Value {
    let schemas = document["components"]["schemas"].as_object_mut().unwrap();
    // What is part of another schema cannot be closed by itself.
    let parts: Vec<String> = schemas
        .values()
        .filter_map(|schema| schema["allOf"].as_array())
        .flatten()
        .filter_map(|part| part["$ref"].as_str()?.rsplit('/').next().map(str::to_owned))
        .collect();
    for (name, schema) in schemas {
        let variants = schema.get("oneOf").is_some();
        if !parts.contains(name)
            && !variants
            && (schema.get("properties").is_some() || schema.get("allOf").is_some())
        {
            schema["unevaluatedProperties"] = false.into();
        }
    }
    document
}

pub(crate) fn validator(document: &Value, schema: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

fn named(document: &Value, name: &str) -> Validator {
    validator(document, &json!({ "$ref": format!("#/components/schemas/{name}") }))
}

#[track_caller]
pub(crate) fn check(validator: &Validator, found: &Value, what: &str) {
    let wrong: Vec<_> = validator.iter_errors(found).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?} in {found:#}");
}

async fn document(server: &Server) -> Value {
    let answer = server.get("/openapi.json").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    closed(answer.json().await.unwrap())
}

/// Of an answer with this status, as the document has it.
pub(crate) fn schema_of(operation: &Value, status: u16) -> &Value {
    let answer = &operation["responses"][status.to_string()];
    assert!(answer.is_object(), "{status} is not described for {}", operation["operationId"]);
    &answer["content"]["application/json"]["schema"]
}

pub(crate) fn examples(operation: &Value) -> impl Iterator<Item = &Value> {
    let body = &operation["requestBody"]["content"]["application/json"];
    body["examples"].as_object().into_iter().flat_map(|examples| examples.values().map(|one| &one["value"]))
}

#[tokio::test]
async fn examples_are_accepted_and_answered_as_described() {
    let server = Server::start(Wish::default());
    let document = document(&server).await;
    let chunk = named(&document, "ChatCompletionChunk");
    let mut sent = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        // This server has nobody to take orders.
        if path.starts_with("/admin/") {
            continue;
        }
        let request = operation["requestBody"]["content"]["application/json"]["schema"].clone();
        for example in examples(operation) {
            check(&validator(&document, &request), example, "an example");
            let answer = server.post(path, example).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{path} {example}");
            sent += 1;
            if example["stream"] != true {
                check(&validator(&document, schema_of(operation, 200)), &answer.json().await.unwrap(), path);
            } else if path == "/v1/chat/completions" {
                let (told, is_done) = events(&answer.text().await.unwrap());
                assert!(is_done && told.len() > 3);
                told.iter().for_each(|event| check(&chunk, event, "a chunk"));
            }
        }
    }
    assert!(sent >= 12, "{sent}");
}

#[tokio::test]
async fn what_is_read_is_answered_as_described() {
    let server = Server::start(Wish::default());
    let document = document(&server).await;
    for path in ["/v1/models", "/v1/models/demo", "/livez", "/readyz", "/v1/models/none"] {
        let answer = server.get(path).send().await.unwrap();
        let described = path.replace("/demo", "/{id}").replace("/none", "/{id}");
        let operation = &document["paths"][&described]["get"];
        let schema = schema_of(operation, answer.status().as_u16()).clone();
        check(&validator(&document, &schema), &answer.json().await.unwrap(), path);
    }
}

#[tokio::test]
async fn refusals_are_described() {
    let server = Server::start(Wish::default());
    let document = document(&server).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        if path.starts_with("/admin/") || operation.is_null() {
            continue;
        }
        for wrong in [json!({ "unknown": 1 }), json!({ "model": "none" }), json!([]), json!({ "model": 7 })] {
            let request = operation["requestBody"]["content"]["application/json"]["schema"].clone();
            if wrong["model"] != "none" {
                assert!(!validator(&document, &request).is_valid(&wrong), "{path} {wrong}");
            }
            let answer = server.post(path, &wrong).send().await.unwrap();
            let schema = schema_of(operation, answer.status().as_u16()).clone();
            assert!(answer.status().is_client_error(), "{path} {wrong}");
            check(&validator(&document, &schema), &answer.json().await.unwrap(), path);
        }
    }
}
