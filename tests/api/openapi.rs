//! `/openapi.json` against the server that it describes: its examples are accepted, and what comes back matches it.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::support::{
    json_schema::{check, closed, examples, schema_of, validator},
    server::{Server, ServerOptions, events},
};

fn named(document: &Value, name: &str) -> Validator {
    validator(document, &json!({ "$ref": format!("#/components/schemas/{name}") }))
}

async fn document(server: &Server) -> Value {
    let answer = server.get("/openapi.json").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    closed(answer.json().await.unwrap())
}

#[tokio::test]
async fn openapi_examples_are_accepted_and_answers_match() {
    let server = Server::start(ServerOptions::default());
    let document = document(&server).await;
    let chunk = named(&document, "ChatCompletionChunk");
    let mut sent = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        // The scripted server has no workers that could run admin commands.
        if path.starts_with("/admin/") || operation["requestBody"].is_null() {
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
async fn get_routes_match_the_openapi_document() {
    let server = Server::start(ServerOptions::default());
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
async fn error_answers_match_the_openapi_document() {
    let server = Server::start(ServerOptions::default());
    let document = document(&server).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        if path.starts_with("/admin/") || operation["requestBody"].is_null() {
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
