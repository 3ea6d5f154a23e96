//! Rejected requests: status, code, and a message that names the field and the fix.

use std::time::Duration;

use eka::job::Readiness;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::server::{CONTEXT_LENGTH, MODEL, Server, ServerOptions, VOCABULARY};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Sends `fields` added to a good request of `route`, and expects a 400 with this code and parameter.
async fn refused(server: &Server, route: &str, fields: Value, code: &str, param: &str) {
    let mut request = match route {
        CHAT => json!({ "messages": [{ "role": "user", "content": "hello" }] }),
        _ => json!({ "prompt": "hello" }),
    };
    let Value::Object(fields) = fields else { panic!("{fields} is no object") };
    request.as_object_mut().unwrap().extend(fields.clone());
    let (status, answer) = server.ask(route, &request).await;
    let error = &answer["error"];
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!(code), &json!(param)),
        "{fields:?}: {answer}"
    );
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(param), "{message:?} does not name {param}");
}

#[tokio::test]
async fn unsupported_openai_fields_are_named_in_the_error() {
    let server = Server::start(ServerOptions::default());
    for (field, value) in [
        ("functions", json!([{}])),
        ("modalities", json!(["audio"])),
        ("audio", json!({ "voice": "alloy" })),
        ("store", json!(true)),
    ] {
        refused(&server, CHAT, json!({ field: value }), "unsupported_field", field).await;
    }
}

#[tokio::test]
async fn errors_of_extension_fields_name_the_value_and_the_limit() {
    let server = Server::start(ServerOptions::default());
    for (fields, param) in [
        (json!({ "typical_p": 1.5 }), "typical_p"),
        (json!({ "dry_multiplier": -1 }), "dry_multiplier"),
        (json!({ "dry_base": 0.5 }), "dry_base"),
        (json!({ "dry_allowed_length": 0 }), "dry_allowed_length"),
        (json!({ "dry_sequence_breakers": [""] }), "dry_sequence_breakers"),
        (json!({ "return_progress": true }), "return_progress"),
    ] {
        for route in [NATIVE, COMPLETIONS, CHAT] {
            refused(&server, route, fields.clone(), "invalid_value", param).await;
        }
    }
}

#[tokio::test]
async fn unknown_fields_are_named_in_the_error() {
    let server = Server::start(ServerOptions::default());
    for route in [NATIVE, COMPLETIONS, CHAT] {
        refused(&server, route, json!({ "temprature": 1 }), "unknown_field", "temprature").await;
        let options = json!({ "stream": true, "stream_options": { "include_tea": true } });
        refused(&server, route, options, "unknown_field", "stream_options.include_tea").await;
    }
    refused(&server, NATIVE, json!({ "max_tokens": 1 }), "unknown_field", "max_tokens").await;
    refused(&server, COMPLETIONS, json!({ "messages": [] }), "unknown_field", "messages").await;
    refused(&server, CHAT, json!({ "prompt": "" }), "unknown_field", "prompt").await;
}

#[tokio::test]
async fn numbers_out_of_range_are_reported_with_value_and_limit() {
    let server = Server::start(ServerOptions::default());
    for (field, value) in [
        ("temperature", json!(2.1)),
        ("temperature", json!(-1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.5)),
        ("min_p", json!(-0.5)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("seed", json!(1.5)),
        ("queue_timeout_ms", json!(0)),
        ("queue_timeout_ms", json!(60_001)),
        ("timeout_ms", json!(1e18)),
    ] {
        for route in [NATIVE, COMPLETIONS, CHAT] {
            refused(&server, route, json!({ field: value }), "invalid_value", field).await;
        }
    }
    for value in [json!(0), json!(-4), json!(2.5), json!(1e30)] {
        refused(&server, NATIVE, json!({ "max_new_tokens": value }), "invalid_value", "max_new_tokens").await;
        refused(&server, COMPLETIONS, json!({ "max_tokens": value }), "invalid_value", "max_tokens").await;
        refused(
            &server,
            CHAT,
            json!({ "max_completion_tokens": value }),
            "invalid_value",
            "max_completion_tokens",
        )
        .await;
    }
    let (_, answer) = server.ask(NATIVE, &json!({ "prompt": "x", "temperature": 2.1 })).await;
    assert_eq!(answer["error"]["message"], "temperature is 2.1, outside 0 to 2");
}

#[tokio::test]
async fn wrong_types_and_values_are_reported_with_their_path() {
    let server = Server::start(ServerOptions::default());
    for (field, value, code, param) in [
        ("temperature", json!("hot"), "invalid_type", "temperature"),
        ("stream", json!("yes"), "invalid_type", "stream"),
        ("model", json!(7), "invalid_type", "model"),
        ("stop", json!(7), "invalid_type", "stop"),
        ("stop", json!(["a", 7]), "invalid_type", "stop[1]"),
        ("stop", json!(["a", ""]), "invalid_value", "stop"),
        ("stop", json!(vec!["a"; 17]), "invalid_value", "stop"),
        ("stop_token_ids", json!([1, -1]), "invalid_type", "stop_token_ids[1]"),
        ("stop_token_ids", json!([1, VOCABULARY]), "invalid_value", "stop_token_ids[1]"),
        ("logit_bias", json!({ "12": 101 }), "invalid_value", "logit_bias.12"),
        ("logit_bias", json!({ "tea": true }), "invalid_type", "logit_bias.tea"),
        ("bad_words", json!(["tea", ""]), "invalid_value", "bad_words"),
        ("allowed_token_ids", json!([]), "invalid_value", "allowed_token_ids"),
        ("allowed_token_ids", json!([1, VOCABULARY]), "invalid_value", "allowed_token_ids[1]"),
        ("logit_bias", json!({ "4096": 1 }), "invalid_value", "logit_bias.4096"),
        ("logit_bias", json!("12"), "invalid_type", "logit_bias"),
        ("logit_bias", json!([1]), "invalid_type", "logit_bias[0]"),
        ("ignore_eos", json!(1), "invalid_type", "ignore_eos"),
        ("stream_options", json!({ "include_usage": true }), "invalid_value", "stream_options"),
    ] {
        for route in [NATIVE, COMPLETIONS, CHAT] {
            refused(&server, route, json!({ field: value }), code, param).await;
        }
    }
}

#[tokio::test]
async fn invalid_prompts_and_messages_are_refused() {
    let server = Server::start(ServerOptions::default());
    for (prompt, code, param) in [
        (json!({}), "missing_field", "prompt.prompt_string"),
        (json!({ "content": 7 }), "invalid_type", "prompt.content"),
        (json!({ "prompt_string": "" }), "empty_prompt", "prompt"),
        (json!({ "prompt_string": "a", "image": 1 }), "unknown_field", "prompt.image"),
        (json!(["a", ["b"]]), "invalid_type", "prompt[1][0]"),
        (json!([[1], "a", 7]), "invalid_type", "prompt[2]"),
        (json!([1, true]), "invalid_type", "prompt[1]"),
        (json!([1, "a", [2]]), "invalid_type", "prompt[2]"),
        (json!([["a"]]), "invalid_type", "prompt[0][0]"),
        (json!([[[1]]]), "invalid_type", "prompt[0][0]"),
        (json!([[]]), "empty_prompt", "prompt[0]"),
        (json!([1, VOCABULARY]), "invalid_value", "prompt[1]"),
        (json!([1, 1e18]), "invalid_type", "prompt[1]"),
        (json!(""), "empty_prompt", "prompt"),
        (json!([]), "empty_prompt", "prompt"),
        (json!(null), "missing_field", "prompt"),
    ] {
        refused(&server, COMPLETIONS, json!({ "prompt": prompt }), code, param).await;
    }
    for (messages, code, param) in [
        (json!("hello"), "invalid_type", "messages"),
        (json!([]), "invalid_value", "messages"),
        (json!(["hello"]), "invalid_type", "messages[0]"),
        (json!([{ "role": "user" }]), "missing_field", "messages[0].content"),
        (json!([{ "content": "a" }]), "missing_field", "messages[0].role"),
        (json!([{ "role": "user", "content": 7 }]), "invalid_type", "messages[0].content"),
        (json!([{ "role": "user", "content": "a", "mood": "good" }]), "unknown_field", "messages[0].mood"),
        (json!([{ "role": "user", "content": "a", "name": 7 }]), "invalid_type", "messages[0].name"),
        (
            json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
            "invalid_value",
            "messages[0].content[0].type",
        ),
    ] {
        refused(&server, CHAT, json!({ "messages": messages }), code, param).await;
    }
    let both = json!({ "messages": [{ "role": "user", "content": "a" }] });
    refused(&server, NATIVE, both, "invalid_value", "messages").await;
    refused(
        &server,
        CHAT,
        json!({ "max_tokens": 1, "max_completion_tokens": 2 }),
        "invalid_value",
        "max_tokens",
    )
    .await;
}

#[tokio::test]
async fn a_request_longer_than_the_context_is_refused_before_queueing() {
    let server = Server::start(ServerOptions::default());
    let prompt = vec![20; 200];
    let (status, answer) = server.ask(NATIVE, &json!({ "prompt": prompt, "max_new_tokens": 57 })).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(["200", "57", "256"].iter().all(|number| message.contains(number)), "{message}");
    let full = vec![20; CONTEXT_LENGTH];
    let (status, answer) = server.ask(NATIVE, &json!({ "prompt": full })).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(server.executor.summary().running.is_empty());
}

/// LiteLLM looks for "this model's maximum context length is", others for "maximum context length" or for the code.
#[tokio::test]
async fn a_context_overflow_has_openais_message() {
    let server = Server::start(ServerOptions::default());
    for (route, body) in [
        (COMPLETIONS, json!({ "prompt": vec![20; 200], "max_tokens": 57 })),
        (COMPLETIONS, json!({ "prompt": vec![20; CONTEXT_LENGTH + 1] })),
        (CHAT, json!({ "messages": [{ "role": "user", "content": "word ".repeat(400) }] })),
        ("/v1/responses", json!({ "input": "word ".repeat(400) })),
    ] {
        let (status, answer) = server.ask(route, &body).await;
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{route}: {answer}");
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        let known = format!("this model's maximum context length is {CONTEXT_LENGTH} tokens");
        assert!(message.to_lowercase().starts_with(&known), "{message}");
    }
    let body = json!({ "prompt": vec![20; 200], "max_tokens": 57 });
    let message = server.ask(COMPLETIONS, &body).await.1["error"]["message"].clone();
    let numbers = "you requested 257 tokens (200 in the messages, 57 in the completion)";
    assert!(message.as_str().unwrap().contains(numbers), "{message}");
}

#[tokio::test]
async fn an_unknown_model_is_a_404_that_names_the_served_model() {
    let server = Server::start(ServerOptions::default());
    let (status, answer) = server.ask(COMPLETIONS, &json!({ "model": "gpt-4o", "prompt": "x" })).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("gpt-4o") && message.contains(MODEL), "{message}");
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_json_errors() {
    let server = Server::start(ServerOptions::default());
    let missing = server.get("/v2/tea").send().await.unwrap();
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json::<Value>().await.unwrap()["error"]["code"], "not_found");
    let wrong = server.get(CHAT).send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), wrong.headers()["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(wrong.json::<Value>().await.unwrap()["error"]["code"], "method_not_allowed");
    let (status, _) = server.ask("/readyz", &json!({})).await;
    assert_eq!(status, 405);
    let head = server.client.head(format!("{}/readyz", server.url)).send().await.unwrap();
    assert_eq!(head.status(), 200);
    server.has_counted("other", "not_found", 1).await;
}

#[tokio::test]
async fn requests_get_a_503_while_no_worker_can_start() {
    let server =
        Server::start(ServerOptions { readiness: || Readiness::Starting, ..ServerOptions::default() });
    let down = |retry_in| Readiness::Down { reason: "it fell six times".into(), retry_in };
    for (readiness, code, retry_after) in [
        (Readiness::Starting, "not_ready", "5"),
        (down(Some(Duration::from_millis(7_300))), "worker_down", "8"),
        (down(None), "worker_down", "60"),
        (Readiness::Stopping, "shutting_down", "5"),
    ] {
        server.readiness.send_replace(readiness);
        let response = server.post(NATIVE, &json!({ "prompt": "x" })).send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], retry_after);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], code);
    }
    server.readiness.send_replace(Readiness::Restarting { reason: "it fell".into() });
    assert_eq!(server.ask(NATIVE, &json!({ "prompt": "x" })).await.0, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let server = Server::start(ServerOptions::default());
    let (status, answer) = server.ask(NATIVE, &json!({ "prompt": "x".repeat(65 << 10) })).await;
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("body_too_large")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("64.0 KiB"), "{answer}");
}

#[tokio::test]
async fn invalid_json_is_a_400_and_never_a_500() {
    let server = Server::start(ServerOptions::default());
    let deep = format!("{{\"prompt\": {}", "[".repeat(20_000));
    let deep_and_closed = format!("{{\"prompt\": {}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"hello\"".to_vec(),
        b"{\"prompt\": \"\xff\xfe\"}".to_vec(),
        b"{\"prompt\": \"\\ud800\"}".to_vec(),
        b"{\"prompt\": \"a\", \"temperature\": NaN}".to_vec(),
        b"{\"prompt\": \"a\", \"temperature\": 1e999}".to_vec(),
        b"{\"prompt\": \"a\", \"temperature\": Infinity}".to_vec(),
        b"{\"prompt\": \"a\"} trailing".to_vec(),
        b"{\"prompt\": [99999999999999999999999999]}".to_vec(),
        b"\0\0\0\0".to_vec(),
        deep.into_bytes(),
        deep_and_closed.into_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        for route in [NATIVE, COMPLETIONS, CHAT] {
            let request = server.client.post(format!("{}{route}", server.url)).body(body.clone());
            let request = request.header("content-type", "application/json");
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 400, "{shown}");
            let answer: Value = response.json().await.unwrap();
            assert!(answer["error"]["code"].is_string(), "{shown}: {answer}");
        }
    }
}

#[tokio::test]
async fn bytes_that_are_not_http_do_not_stop_the_server() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap();
    for garbage in [
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "GET\r\n\r\n",
        "POST /generate-lite HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        "POST /generate-lite HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "POST /generate-lite HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nshort",
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(garbage.as_bytes()).await.unwrap();
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        // A connection that is reset is an answer as well.
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 5"), "{garbage:?}");
    }
    assert_eq!(server.ask(NATIVE, &json!({ "prompt": "x" })).await.0, 200);
}
