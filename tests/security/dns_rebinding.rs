//! Web pages that attack a server which their visitor can reach: DNS rebinding, cross-site requests, admin endpoints.

use std::{io::Write, sync::Arc};

use eka::{
    auth::{AccessControl, Keys, Rules},
    config::{Hosts, Origins},
    job::{CommandOutcome, CommandReport, Memory},
};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::server::{Server, ServerOptions};

const NATIVE: &str = "/generate-lite";
const KEY: &str = "asha-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";

fn behind(rules: Rules) -> Server {
    let outcome = CommandReport {
        before: Memory::default(),
        after: Memory::default(),
        took: std::time::Duration::ZERO,
        loaded: vec![],
    };
    Server::start_with(ServerOptions::default(), |state| {
        state.access = Arc::new(AccessControl::new(rules));
        state.commands = Some(Arc::new(move |_| {
            let outcome = Ok(outcome.clone());
            Box::pin(async { vec![CommandOutcome { device: None, outcome }] })
        }));
    })
}

fn keys() -> Keys {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[[key]]\nname = \"asha\"\nkey = \"{KEY}\"\n[[key]]\nname = \"admin\"\nkey = \"{ADMIN}\"\nadmin = true\n"
    )
    .unwrap();
    Keys::read(Some(file.path()), None).unwrap()
}

async fn status_and_code(request: RequestBuilder) -> (u16, String) {
    let response: Response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap_or_default();
    (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn generate(server: &Server) -> RequestBuilder {
    server.post(NATIVE, &json!({ "prompt": "x", "max_new_tokens": 1 }))
}

#[tokio::test]
async fn a_public_host_name_is_refused_except_for_probes() {
    let server = behind(Rules::default());
    for host in ["evil.example", "evil.example:8110", "127.0.0.1.evil.example"] {
        for path in ["/", "/v1/models", "/metrics", "/v1/slot", "/openapi.json", "/nowhere", "/admin/cache"] {
            let asked = status_and_code(server.get(path).header("host", host)).await;
            assert_eq!(asked, (403, "host_not_allowed".into()), "{host}{path}");
        }
        assert_eq!(status_and_code(generate(&server).header("host", host)).await.1, "host_not_allowed");
        for probe in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(status_and_code(server.get(probe).header("host", host)).await.0, 200, "{probe}");
        }
    }
    for host in
        ["localhost:8110", "127.0.0.1", "[::1]:8110", "10.0.0.7:8110", "eka", "eka.default.svc.cluster.local"]
    {
        assert_eq!(status_and_code(generate(&server).header("host", host)).await.0, 200, "{host}");
    }
    let refused = server.get("/").header("host", "evil.example").send().await.unwrap();
    let text = refused.text().await.unwrap();
    assert!(text.contains("server.hosts") && text.contains("evil.example"), "{text}");
}

#[tokio::test]
async fn server_hosts_allows_names_and_with_keys_any_host_is_allowed_unless_listed() {
    let listed = || Hosts::List(vec!["chat.example.org".into()]);
    let server = behind(Rules { hosts: listed(), ..Rules::default() });
    assert_eq!(status_and_code(generate(&server).header("host", "Chat.example.org:443")).await.0, 200);
    assert_eq!(
        status_and_code(generate(&server).header("host", "chat.example.com")).await.1,
        "host_not_allowed"
    );
    let any = behind(Rules { hosts: Hosts::Any, ..Rules::default() });
    assert_eq!(status_and_code(generate(&any).header("host", "chat.example.com")).await.0, 200);
    let with_keys = behind(Rules { keys: keys(), ..Rules::default() });
    let asked = |server: &Server| generate(server).bearer_auth(KEY).header("host", "chat.example.com");
    assert_eq!(status_and_code(asked(&with_keys)).await.0, 200);
    let both = behind(Rules { keys: keys(), hosts: listed(), ..Rules::default() });
    assert_eq!(status_and_code(asked(&both)).await.1, "host_not_allowed");
}

#[tokio::test]
async fn cross_origin_requests_are_refused() {
    let server = behind(Rules::default());
    for path in [NATIVE, "/v1/completions", "/v1/chat/completions", "/tokenize", "/admin/trim", "/nowhere"] {
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:1"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let request = server.post(path, &json!({ "prompt": "x" })).header(name, value);
            assert_eq!(
                status_and_code(request).await,
                (403, "origin_not_allowed".into()),
                "{path} {name}: {value}"
            );
        }
    }
    for (name, value) in
        [("origin", server.url.as_str()), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")]
    {
        assert_eq!(status_and_code(generate(&server).header(name, value)).await.0, 200, "{name}: {value}");
    }
    let read = server.get("/v1/models").header("origin", "http://evil.example").send().await.unwrap();
    assert!(!read.headers().contains_key("access-control-allow-origin"), "it is not shown to the page");
}

#[tokio::test]
async fn a_body_without_the_json_content_type_is_a_415_with_the_fix() {
    let server = behind(Rules::default());
    for kind in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let request = server.client.post(format!("{}{NATIVE}", server.url)).body(r#"{"prompt": "x"}"#);
        let request = kind.into_iter().fold(request, |request, kind| request.header("content-type", kind));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 415, "{kind:?}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "unsupported_media_type");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("-H 'Content-Type: application/json'"), "{message}");
    }
    // Ollama's documentation sends forms, and some of its clients no type; a page of a browser must not.
    for kind in [Some("application/x-www-form-urlencoded"), None] {
        for (name, value, status) in [
            ("accept", "*/*", 200),
            ("origin", server.url.as_str(), 415),
            ("sec-fetch-site", "same-origin", 415),
        ] {
            let request = server.client.post(format!("{}/api/generate", server.url)).header(name, value);
            let request = request.body(r#"{"prompt": "x", "raw": true, "stream": false}"#);
            let request =
                kind.into_iter().fold(request, |request, kind| request.header("content-type", kind));
            assert_eq!(request.send().await.unwrap().status(), status, "{kind:?} {name}");
        }
    }
    let bare = server.client.post(format!("{}/admin/models/demo/load", server.url));
    assert_eq!(status_and_code(bare).await.0, 200, "a request without a body needs no type");
}

#[tokio::test]
async fn cors_star_does_not_open_admin_endpoints() {
    let page = "https://anything.example";
    let star = || Rules { origins: Origins::Any, ..Rules::default() };
    let server = behind(star());
    assert_eq!(status_and_code(generate(&server).header("origin", page)).await.0, 200);
    for path in ["/admin/trim", "/%61dmin/trim", "/admin/models/demo/unload", "/admin/drain"] {
        let order =
            server.client.request(Method::POST, format!("{}{path}", server.url)).header("origin", page);
        assert_eq!(status_and_code(order).await, (403, "not_from_here".into()), "{path}");
    }
    assert_eq!(status_and_code(server.get("/admin/cache").header("origin", page)).await.1, "not_from_here");
    let with_keys = behind(Rules { keys: keys(), ..star() });
    let order = with_keys.post("/admin/trim", &json!({})).bearer_auth(ADMIN);
    assert_eq!(status_and_code(order.try_clone().unwrap()).await.0, 200);
    assert_eq!(status_and_code(order.header("origin", page)).await.1, "not_from_here");
    let listed = behind(Rules { origins: Origins::List(vec![page.into()]), ..Rules::default() });
    assert_eq!(status_and_code(listed.post("/admin/trim", &json!({})).header("origin", page)).await.0, 200);
}

#[tokio::test]
async fn proxied_requests_are_not_local() {
    let server = behind(Rules::default());
    assert_eq!(server.ask("/admin/trim", &json!({})).await.0, 200);
    for name in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"]
    {
        let order = server.post("/admin/trim", &json!({})).header(name, "203.0.113.7");
        assert_eq!(status_and_code(order).await, (403, "not_from_here".into()), "{name}");
    }
    let admin = behind(Rules { keys: keys(), ..Rules::default() });
    let order =
        admin.post("/admin/trim", &json!({})).bearer_auth(ADMIN).header("x-forwarded-for", "203.0.113.7");
    assert_eq!(status_and_code(order).await.0, 200, "a key is enough");
}
