//! OpenAI's responses, whole and streamed.

use serde_json::{Value, json};

use crate::support::{
    requests::assert_refused,
    server::{ANSWER, ANSWER_IDS, Server, ServerOptions},
};
use eka::units::Bytes;

const RESPONSES: &str = "/v1/responses";
const QWEN: &str = include_str!("../fixtures/templates/qwen2.5.jinja");

/// The documents of a stream of typed events, each of which has its type and its number.
fn typed(stream: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    for (number, event) in stream.split_terminator("\n\n").enumerate() {
        let (kind, document) = event.split_once('\n').unwrap();
        let document: Value = serde_json::from_str(document.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(kind, format!("event: {}", document["type"].as_str().unwrap()));
        assert_eq!(document["sequence_number"], number);
        documents.push(document);
    }
    documents
}

fn kinds(documents: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = documents.iter().map(|document| document["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

/// What differs from answer to answer, taken out.
fn plain(mut response: Value) -> Value {
    for name in ["id", "created_at", "timings"] {
        response.as_object_mut().unwrap().shift_remove(name);
    }
    for item in response["output"].as_array_mut().unwrap() {
        item["id"] = Value::Null;
        item["call_id"] = Value::Null;
    }
    response
}

async fn ok(server: &Server, request: &Value) -> Value {
    let (status, answer) = server.ask(RESPONSES, request).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn streamed(server: &Server, mut request: Value) -> Vec<Value> {
    request["stream"] = json!(true);
    typed(&server.stream(RESPONSES, &request).await)
}

#[tokio::test]
async fn a_response_is_the_same_whole_and_as_typed_events() {
    let server = Server::start(ServerOptions::default());
    let request = json!({ "model": "demo", "input": "Please speak slowly.", "instructions": "Be kind.", "temperature": 0 });
    let whole = ok(&server, &request).await;
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    assert_eq!(whole["output"][0]["content"][0]["text"], ANSWER);
    assert_eq!((&whole["instructions"], &whole["temperature"]), (&json!("Be kind."), &json!(0)));
    let usage = &whole["usage"];
    assert_eq!(usage["output_tokens"], ANSWER_IDS.len());
    let sum = usage["input_tokens"].as_u64().unwrap() + ANSWER_IDS.len() as u64;
    assert_eq!(usage["total_tokens"], sum);
    let documents = streamed(&server, request).await;
    assert_eq!(
        kinds(&documents),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = documents.iter().filter_map(|document| document["delta"].as_str()).collect();
    assert_eq!(deltas, ANSWER);
    let done = documents.iter().find(|document| document["type"] == "response.output_text.done").unwrap();
    assert_eq!(done["text"], ANSWER);
    let last = documents.last().unwrap();
    assert_eq!(plain(last["response"].clone()), plain(whole));
    assert_eq!(last["response"]["id"], documents[0]["response"]["id"]);
    assert_eq!(documents[2]["item"]["id"], last["response"]["output"][0]["id"]);
}

#[tokio::test]
async fn a_response_that_was_cut_has_status_incomplete() {
    let server = Server::start(ServerOptions::default());
    let request = json!({ "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "Please" }] }],
        "max_output_tokens": 3 });
    let whole = ok(&server, &request).await;
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(whole["usage"]["output_tokens"], 3);
    let documents = streamed(&server, request).await;
    assert_eq!(documents.last().unwrap()["type"], "response.incomplete");
    assert_eq!(plain(documents.last().unwrap()["response"].clone()), plain(whole));
}

#[tokio::test]
async fn a_response_repeats_an_unlimited_length_as_null() {
    let server = Server::start(ServerOptions::default());
    for unlimited in [json!(-1), json!(null)] {
        let whole = ok(&server, &json!({ "input": "Please", "max_output_tokens": unlimited })).await;
        assert_eq!(whole["max_output_tokens"], json!(null), "{unlimited}");
    }
    let whole = ok(&server, &json!({ "input": "Please", "max_output_tokens": 3 })).await;
    assert_eq!(whole["max_output_tokens"], 3);
}

#[tokio::test]
async fn tool_calls_are_output_items_and_their_results_are_input_items() {
    let answer =
        "Wait.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune\"}}\n</tool_call>";
    let server = Server::start(ServerOptions {
        template: Some(QWEN),
        answer: Some(answer),
        ..ServerOptions::default()
    });
    let tools = json!([{ "type": "function", "name": "weather", "parameters": { "type": "object" }, "strict": false }]);
    let request = json!({ "input": "Rain?", "tools": tools, "max_output_tokens": 200 });
    let whole = ok(&server, &request).await;
    let [said, call] = &whole["output"].as_array().unwrap()[..] else { panic!("{whole}") };
    assert_eq!((&said["type"], &said["content"][0]["text"]), (&json!("message"), &json!("Wait.")));
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("weather"), &json!("{\"city\": \"Pune\"}"))
    );
    let documents = streamed(&server, request).await;
    assert_eq!(
        kinds(&documents)[7..],
        [
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    assert_eq!(plain(documents.last().unwrap()["response"].clone()), plain(whole.clone()));
    let result = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "No." });
    let again =
        json!({ "input": [{ "role": "user", "content": "Rain?" }, said, call, result], "tools": tools });
    ok(&server, &again).await;
}

#[tokio::test]
async fn unsupported_fields_of_responses_are_refused_by_name() {
    let server = Server::start(ServerOptions::default());
    for (fields, code, param) in [
        (json!({}), "missing_field", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (json!({ "input": 7 }), "invalid_type", "input"),
        (json!({ "input": "a", "store": true }), "invalid_value", "store"),
        (json!({ "input": "a", "previous_response_id": "resp_1" }), "invalid_value", "previous_response_id"),
        (json!({ "input": "a", "reasoning": { "effort": "huge" } }), "invalid_value", "reasoning.effort"),
        (json!({ "input": "a", "background": true }), "unsupported_field", "background"),
        (json!({ "input": "a", "max_tokens": 7 }), "unknown_field", "max_tokens"),
        (json!({ "input": "a", "temperature": 3 }), "invalid_value", "temperature"),
        (
            json!({ "input": "a", "text": { "format": { "type": "yaml" } } }),
            "invalid_value",
            "text.format.type",
        ),
        (
            json!({ "input": "a", "text": { "format": { "type": "json_schema" } } }),
            "missing_field",
            "text.format.schema",
        ),
        (
            json!({ "input": "a", "text": { "format": { "type": "json_schema", "schema": { "not": {} } } } }),
            "invalid_constraint",
            "text.format",
        ),
        (json!({ "input": [{ "type": "web_search_call" }] }), "invalid_value", "input[0].type"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            "invalid_value",
            "input[0].content[0].type",
        ),
        (
            json!({ "input": "a", "tools": [{ "type": "function", "name": "a b" }] }),
            "invalid_value",
            "tools[0].name",
        ),
    ] {
        assert_refused(&server.ask(RESPONSES, &fields).await, code, param);
    }
}

/// A request in the shape that Codex sends.
fn of_codex(input: &Value) -> Value {
    json!({
        "model": "demo", "instructions": "You code.", "input": input, "tool_choice": "auto", "parallel_tool_calls": false,
        "tools": [
            { "type": "function", "name": "shell", "description": "Runs.", "strict": false,
              "parameters": { "type": "object", "properties": { "command": { "type": "array", "items": { "type": "string" } } }, "required": ["command"] } },
            { "type": "custom", "name": "apply_patch", "format": { "type": "grammar", "syntax": "lark", "definition": "start: /a/" } },
            { "type": "namespace", "name": "more", "tools": [] },
            { "type": "web_search", "external_web_access": false },
        ],
        "reasoning": { "effort": "medium", "summary": "auto" }, "store": false, "stream": false,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": { "a": "b" },
    })
}

#[tokio::test]
async fn requests_of_codex_are_answered_and_tools_that_eka_cannot_run_are_left_out_with_a_warning() {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
        {{ m.content }}{% endfor %}{% if tools %}<tool_call>{% endif %}<assistant>";
    let server = Server::start(ServerOptions {
        template: Some(TEMPLATE),
        answer: Some("<think>Hm.</think>Done."),
        ..ServerOptions::default()
    });
    let first =
        json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Go." }] }]);
    let response = server.post(RESPONSES, &of_codex(&first)).send().await.unwrap();
    assert_eq!(response.headers()["x-eka-ignored-fields"], "tools[1], tools[2], tools[3]");
    let answer: Value = response.json().await.unwrap();
    let output = answer["output"].as_array().unwrap();
    let kinds: Vec<_> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message"], "{answer}");
    assert_eq!(output[0]["content"], json!([{ "type": "reasoning_text", "text": "Hm." }]));
    assert!(answer["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    let mut again = first.as_array().unwrap().clone();
    again.extend(output.iter().cloned());
    again.push(json!({ "type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "a", "status": "completed" }));
    again.push(json!({ "type": "custom_tool_call_output", "call_id": "c", "output": "ok" }));
    let (status, next) = server.ask(RESPONSES, &of_codex(&again.into())).await;
    assert_eq!(status, 200, "{next}");
    let (status, count) = server.ask("/v1/responses/input_tokens", &of_codex(&first)).await;
    assert_eq!((status, &count["input_tokens"]), (200, &answer["usage"]["input_tokens"]));
}

/// The text of the prompt that ran last.
async fn last_prompt(server: &Server) -> String {
    let tokens = json!({ "tokens": server.last_job().prompt });
    server.ask("/detokenize", &tokens).await.1["content"].as_str().unwrap().to_owned()
}

fn storing() -> Server {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
    Server::start(ServerOptions {
        template: Some(TEMPLATE),
        answer: Some("Yes."),
        stored_responses: Bytes::mib(1),
        ..ServerOptions::default()
    })
}

#[tokio::test]
async fn a_request_continues_a_stored_response_by_its_id() {
    let server = storing();
    let first = ok(&server, &json!({ "input": "Is it far?", "instructions": "Be kind." })).await;
    assert_eq!((&first["store"], &first["previous_response_id"]), (&json!(true), &Value::Null));
    let second = json!({ "input": "And by bus?", "previous_response_id": first["id"] });
    let whole = ok(&server, &second).await;
    assert_eq!(whole["previous_response_id"], first["id"]);
    let prompt = last_prompt(&server).await;
    assert_eq!(prompt, "<user>Is it far?<assistant>Yes.<user>And by bus?<assistant>", "without instructions");
    // A streamed response is stored as well, and continued in turn.
    let documents = streamed(&server, second).await;
    let last = &documents.last().unwrap()["response"];
    let third = json!({ "input": "Thanks", "previous_response_id": last["id"], "store": false });
    let answer = ok(&server, &third).await;
    assert!(last_prompt(&server).await.ends_with("<user>And by bus?<assistant>Yes.<user>Thanks<assistant>"));
    assert_eq!(answer["store"], false);
    let unknown = json!({ "input": "a", "previous_response_id": answer["id"] });
    assert_refused(&server.ask(RESPONSES, &unknown).await, "invalid_value", "previous_response_id");
}

#[tokio::test]
async fn a_stored_response_is_read_and_deleted_by_its_id() {
    let server = storing();
    let answer = ok(&server, &json!({ "input": "Is it far?" })).await;
    let path = format!("{RESPONSES}/{}", answer["id"].as_str().unwrap());
    let read = async || server.get(&path).send().await.unwrap();
    assert_eq!(read().await.json::<Value>().await.unwrap(), answer);
    let cancelled = server.ask(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((cancelled.0, &cancelled.1["error"]["code"]), (501, &json!("not_implemented")));
    let delete = async || server.client.delete(format!("{}{path}", server.url)).send().await.unwrap();
    let deleted: Value = delete().await.json().await.unwrap();
    assert_eq!(deleted, json!({ "id": answer["id"], "object": "response", "deleted": true }));
    for gone in [read().await, delete().await] {
        assert_eq!(gone.status(), 404);
        assert_eq!(gone.json::<Value>().await.unwrap()["error"]["code"], "response_not_found");
    }
    let put = server.client.put(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(
        (put.status().as_u16(), &put.headers()["allow"]),
        (405, &"GET, HEAD, DELETE".parse().unwrap())
    );
}
