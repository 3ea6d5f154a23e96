//! Text to tokens and back, and messages to a prompt, without a worker.

use eka::job::Readiness;
use serde_json::{Value, json};

use crate::support::server::{ANSWER, ANSWER_IDS, CONTEXT_LENGTH, MODEL, Server, ServerOptions, VOCABULARY};

const TOKENIZE: &str = "/tokenize";
const DETOKENIZE: &str = "/detokenize";
const APPLY: &str = "/apply-template";

/// No worker is there, and none is needed.
fn server() -> Server {
    Server::start(ServerOptions { readiness: || Readiness::Starting, ..ServerOptions::default() })
}

async fn ok(server: &Server, route: &str, body: Value) -> Value {
    let (status, answer) = server.ask(route, &body).await;
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

async fn refused(server: &Server, route: &str, body: Value, code: &str, param: &str) -> String {
    let (status, answer) = server.ask(route, &body).await;
    let error = &answer["error"];
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!(code), &json!(param)),
        "{body}: {answer}"
    );
    error["message"].as_str().unwrap().to_owned()
}

fn conversation() -> Value {
    json!([{ "role": "user", "content": "Please speak slowly." }])
}

#[tokio::test]
async fn tokenize_and_detokenize_round_trip() {
    let server = server();
    let answer = ok(&server, TOKENIZE, json!({ "model": MODEL, "content": ANSWER })).await;
    let ids = &ANSWER_IDS[..13];
    assert_eq!(answer, json!({ "count": 13, "tokens": ids, "max_model_len": CONTEXT_LENGTH }));
    let back = ok(&server, DETOKENIZE, json!({ "tokens": ids })).await;
    assert_eq!(back, json!({ "content": ANSWER, "prompt": ANSWER }));
    let long = ANSWER.repeat(100);
    let answer = ok(&server, TOKENIZE, json!({ "content": long })).await;
    assert_eq!(ok(&server, DETOKENIZE, json!({ "tokens": answer["tokens"] })).await["content"], json!(long));
    assert_eq!(ok(&server, DETOKENIZE, json!({ "tokens": [] })).await["content"], "");
    server.has_counted(TOKENIZE, "ok", 2).await;
}

#[tokio::test]
async fn special_token_fields_of_llama_cpp_and_vllm_both_work() {
    let server = server();
    let tokens = async |body| ok(&server, TOKENIZE, body).await["tokens"].clone();
    let bare = tokens(json!({ "content": "Please" })).await;
    let whole = tokens(json!({ "prompt": "Please" })).await;
    assert_eq!((&whole[0], &whole[1]), (&json!(1), &bare[0]));
    assert_eq!(tokens(json!({ "content": "Please", "add_special": true })).await, whole);
    assert_eq!(
        tokens(json!({ "prompt": "Please", "add_special_tokens": false, "parse_special": true })).await,
        bare
    );
    assert_eq!(tokens(json!({ "content": "<s>Please" })).await, whole, "spelled out");
}

#[tokio::test]
async fn with_pieces_returns_bytes_where_a_character_is_split() {
    let server = server();
    let answer = ok(&server, TOKENIZE, json!({ "prompt": "😀 a", "with_pieces": true })).await;
    let pieces = answer["tokens"].as_array().unwrap();
    assert_eq!(pieces[0], json!({ "id": 1, "piece": "<s>" }));
    let bytes = |entry: &Value| match &entry["piece"] {
        Value::String(text) => text.clone().into_bytes(),
        bytes => serde_json::from_value(bytes.clone()).unwrap(),
    };
    let joined: Vec<u8> = pieces[1..].iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8(joined).unwrap(), "😀 a");
    assert!(pieces.iter().any(|entry| entry["piece"].is_array()), "{answer}");
}

#[tokio::test]
async fn return_token_strs_adds_the_texts_of_the_tokens() {
    let server = server();
    let answer = ok(&server, TOKENIZE, json!({ "prompt": "a b", "return_token_strs": true })).await;
    let texts: Vec<&str> =
        answer["token_strs"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(
        (texts.concat().as_str(), texts.len()),
        ("<s>a b", answer["tokens"].as_array().unwrap().len())
    );
}

#[tokio::test]
async fn apply_template_returns_the_prompt_of_a_chat_request() {
    let server = Server::start(ServerOptions::default());
    let prompt = ok(&server, APPLY, json!({ "messages": conversation() })).await["prompt"].clone();
    assert_eq!(prompt, "<s><|user|>Please speak slowly.<|end|><|assistant|>");
    let cut = ok(&server, TOKENIZE, json!({ "messages": conversation() })).await;
    assert_eq!(ok(&server, TOKENIZE, json!({ "content": prompt })).await, cut);
    let chat = ok(&server, "/v1/chat/completions", json!({ "messages": conversation() })).await;
    assert_eq!(chat["usage"]["prompt_tokens"], cut["count"]);
}

#[tokio::test]
async fn apply_template_renders_tools_where_the_template_puts_them() {
    const TEMPLATE: &str = "{% if tools %}{% for tool in tools %}{{ tool | tojson }};{% endfor %}{% endif %}\
        {% for m in messages %}{{ m.content }}{% endfor %}";
    let server = Server::start(ServerOptions { template: Some(TEMPLATE), ..ServerOptions::default() });
    let function = json!({ "name": "now", "description": "the time", "strict": true });
    let body = json!({ "messages": conversation(), "tools": [{ "type": "function", "function": function }] });
    let prompt = ok(&server, APPLY, body).await["prompt"].clone();
    let told = r#"{"type": "function", "function": {"name": "now", "description": "the time"}};Please speak slowly."#;
    assert_eq!(prompt, told);
}

#[tokio::test]
async fn invalid_requests_to_tokenize_routes_are_refused() {
    let server = server();
    for (route, body, code, param) in [
        (TOKENIZE, json!({}), "missing_field", "content, prompt or messages"),
        (TOKENIZE, json!({ "content": "a", "prompt": "b" }), "invalid_value", "prompt"),
        (TOKENIZE, json!({ "content": 7 }), "invalid_type", "content"),
        (TOKENIZE, json!({ "content": "a", "piece": true }), "unknown_field", "piece"),
        (TOKENIZE, json!({ "content": "a", "parse_special": false }), "unsupported_field", "parse_special"),
        (
            TOKENIZE,
            json!({ "messages": conversation(), "add_special": true }),
            "invalid_value",
            "add_special",
        ),
        (DETOKENIZE, json!({}), "missing_field", "tokens"),
        (DETOKENIZE, json!({ "tokens": [1, VOCABULARY] }), "invalid_value", "tokens[1]"),
        (DETOKENIZE, json!({ "tokens": [1, -1] }), "invalid_type", "tokens[1]"),
        (DETOKENIZE, json!({ "tokens": [1], "skip": 1 }), "unknown_field", "skip"),
        (APPLY, json!({}), "missing_field", "messages"),
        (APPLY, json!({ "messages": conversation(), "tools": [{}] }), "missing_field", "tools[0].type"),
        (APPLY, json!({ "messages": conversation(), "content": "" }), "unknown_field", "content"),
    ] {
        refused(&server, route, body, code, param).await;
    }
    let said = refused(&server, DETOKENIZE, json!({ "tokens": [4096] }), "invalid_value", "tokens[0]").await;
    assert_eq!(said, "tokens[0] is 4096, outside 0 to 4095, the model's token ids");
    let (status, answer) = server.ask(TOKENIZE, &json!({ "model": "other", "content": "a" })).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.get(TOKENIZE).send().await.unwrap().status(), 405);
}

fn with_template(template: &'static str) -> Server {
    Server::start(ServerOptions { template: Some(template), ..ServerOptions::default() })
}

/// What Qwen3 and QwQ do with every content.
const THINKING: &str = "{% for m in messages %}{{ m.role }}:{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}\
     {% else %}{{ m.content }}{% endif %}{% for call in m.tool_calls %}[{{ call.function.name }}]{% endfor %};{% endfor %}\
     {% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}";

#[tokio::test]
async fn content_null_with_tool_calls_renders_in_templates_that_search_the_content() {
    let server = with_template(THINKING);
    let call = json!({ "id": "1", "type": "function", "function": { "name": "now", "arguments": "{}" } });
    for assistant in [
        json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
        json!({ "role": "assistant", "tool_calls": [call] }),
    ] {
        let messages = json!([
            { "role": "user", "content": "time?" }, assistant,
            { "role": "tool", "tool_call_id": "1", "content": "noon" },
        ]);
        let prompt = ok(&server, APPLY, json!({ "messages": messages })).await["prompt"].clone();
        assert_eq!(prompt, "user:time?;assistant:[now];tool:noon;");
    }
    let items = json!([
        { "role": "user", "content": "time?" },
        { "type": "function_call", "call_id": "1", "name": "now", "arguments": "{}" },
        { "type": "function_call_output", "call_id": "1", "output": "noon" },
    ]);
    ok(&server, "/v1/responses", json!({ "input": items })).await;
}

#[tokio::test]
async fn templates_that_test_tools_for_iterable_work_without_tools() {
    const TEMPLATE: &str =
        "{% if tools is iterable and tools | length > 0 %}tools{% endif %}{{ messages[0].content }}";
    let server = with_template(TEMPLATE);
    let prompt = ok(&server, APPLY, json!({ "messages": conversation() })).await["prompt"].clone();
    assert_eq!(prompt, "Please speak slowly.");
}

#[tokio::test]
async fn raise_exception_in_a_template_is_a_400_with_its_message() {
    const TEMPLATE: &str = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
         {{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}";
    let server = with_template(TEMPLATE);
    let twice = json!([{ "role": "user", "content": "a" }, { "role": "user", "content": "b" }]);
    for route in [APPLY, TOKENIZE, "/v1/chat/completions"] {
        let said =
            refused(&server, route, json!({ "messages": twice }), "messages_refused", "messages").await;
        assert!(said.contains("Roles must alternate"), "{said}");
    }
    let body = json!({ "input": twice });
    let said = refused(&server, "/v1/responses", body, "messages_refused", "messages").await;
    assert!(said.contains("Roles must alternate"), "{said}");
}

#[tokio::test]
async fn a_template_error_is_a_400_with_the_line() {
    let server = with_template("a\n{{ messages[0].nothing.more }}{{ messages[0].content }}");
    let body = json!({ "messages": conversation() });
    for route in [APPLY, TOKENIZE, "/v1/chat/completions"] {
        let said = refused(&server, route, body.clone(), "chat_template_failed", "messages").await;
        assert!(said.contains("chat:2") && said.contains("plain prompt"), "{said}");
    }
}

#[tokio::test]
async fn a_template_that_takes_too_many_steps_is_a_400() {
    let server =
        with_template("{% for a in range(9999) %}{% for b in range(9999) %}a{% endfor %}{% endfor %}");
    let said =
        refused(&server, APPLY, json!({ "messages": conversation() }), "chat_template_limit", "messages")
            .await;
    assert!(said.contains("steps"), "{said}");
}

#[tokio::test]
async fn an_unsupported_template_construct_is_a_501_with_the_line() {
    let server = with_template("a\n{{ messages[0].content | frobnicate }}");
    for route in [APPLY, "/v1/chat/completions"] {
        let (status, answer) = server.ask(route, &json!({ "messages": conversation() })).await;
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (501, &json!("chat_template_unsupported")), "{answer}");
        let said = error["message"].as_str().unwrap();
        for part in ["frobnicate", "chat:2", "plain prompt", "report it"] {
            assert!(said.contains(part), "{said:?} does not contain {part:?}");
        }
    }
}

#[tokio::test]
async fn the_tokenizer_of_the_default_model_is_described_as_in_vllm() {
    let server =
        Server::start(ServerOptions { template: Some("{{ messages }}"), ..ServerOptions::default() });
    let info: Value = server.get("/tokenizer_info").send().await.unwrap().json().await.unwrap();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")), "{info}");
    assert_eq!((&info["chat_template"], &info["vocab_size"]), (&json!("{{ messages }}"), &json!(4096)));
}
