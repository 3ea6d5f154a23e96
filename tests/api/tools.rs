//! Tools: how the prompt describes them, and how calls are returned.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    files::copy,
    program::{Program, root},
    requests::{assert_refused, with},
    server::{Server, ServerOptions, events},
};

const CHAT: &str = "/v1/chat/completions";
const QWEN: &str = include_str!("../fixtures/templates/qwen2.5.jinja");
const LLAMA: &str = include_str!("../fixtures/templates/llama3.2.jinja");
const MISTRAL: &str = include_str!("../fixtures/templates/mistral-v3.jinja");

const ONE: &str = "Wait.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"पुणे\", \"days\": 3}}\n</tool_call>";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": { "city": { "enum": ["पुणे", "சென்னை"] }, "days": { "$ref": "#/$defs/few" } },
        "required": ["city", "days"], "additionalProperties": false,
        "$defs": { "few": { "type": "integer", "minimum": 1, "maximum": 9 } },
    })
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "weather", "description": "It rains?", "parameters": schema() } },
        { "type": "function", "function": { "name": "now" } },
    ])
}

fn request(fields: &Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Will it rain?" }]);
    with(json!({ "messages": messages, "tools": tools(), "max_tokens": 100 }), fields)
}

fn server(template: &'static str, answer: &'static str) -> Server {
    Server::start(ServerOptions {
        template: Some(template),
        answer: Some(answer),
        ..ServerOptions::default()
    })
}

/// A stream's deltas, put together as clients do it, and its reason to finish.
fn assembled(documents: &[Value]) -> (String, Vec<Value>, Value) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for choice in documents.iter().map(|document| &document["choices"][0]) {
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        for piece in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = usize::try_from(piece["index"].as_u64().unwrap()).unwrap();
            if index == calls.len() {
                assert!(piece["id"].is_string() && piece["function"]["name"].is_string(), "{piece}");
                let mut call = piece.clone();
                call.as_object_mut().unwrap().shift_remove("index");
                calls.push(call);
            } else {
                let more = piece["function"]["arguments"].as_str().unwrap();
                let arguments = &mut calls[index]["function"]["arguments"];
                *arguments = json!(arguments.as_str().unwrap().to_owned() + more);
            }
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (content, calls, reason)
}

/// Name and arguments of each call.
fn called(calls: &[Value]) -> Vec<(String, Value)> {
    let one = |call: &Value| {
        assert_eq!(call["type"], "function");
        let function = &call["function"];
        let arguments = function["arguments"].as_str().unwrap();
        let arguments = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {arguments}"));
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.iter().map(one).collect()
}

fn calls_of(answer: &Value) -> &[Value] {
    answer["choices"][0]["message"]["tool_calls"].as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test]
async fn tool_calls_are_extracted_from_whole_and_streamed_answers() {
    let server = server(QWEN, ONE);
    let (status, answer) = server.ask(CHAT, &request(&json!({}))).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Wait."))
    );
    let expected = vec![("weather".to_owned(), json!({ "city": "पुणे", "days": 3 }))];
    assert_eq!(called(calls_of(&answer)), expected);
    let (documents, is_done) = events(&server.stream(CHAT, &request(&json!({ "stream": true }))).await);
    assert!(is_done);
    let (content, calls, reason) = assembled(&documents);
    assert_eq!((content.as_str(), called(&calls), &reason), ("Wait.", expected, &json!("tool_calls")));
    let pieces =
        documents.iter().filter(|document| document["choices"][0]["delta"].get("tool_calls").is_some());
    assert!(pieces.count() > 3, "arguments come as they are written");
    assert_ne!(calls[0]["id"], calls_of(&answer)[0]["id"]);
}

#[tokio::test]
async fn parallel_tool_calls_are_numbered_and_can_be_limited_to_one() {
    let server = server(
        QWEN,
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"x\"}}\n</tool_call>",
    );
    let (_, answer) = server.ask(CHAT, &request(&json!({}))).await;
    let names: Vec<_> = called(calls_of(&answer)).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["now", "weather"]);
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
    assert_ne!(calls_of(&answer)[0]["id"], calls_of(&answer)[1]["id"]);
    for stream in [false, true] {
        let one = request(&json!({ "parallel_tool_calls": false, "stream": stream }));
        let body = server.post(CHAT, &one).send().await.unwrap().text().await.unwrap();
        let calls = if stream {
            assembled(&events(&body).0).1
        } else {
            calls_of(&serde_json::from_str(&body).unwrap()).to_vec()
        };
        assert_eq!(called(&calls), [("now".to_owned(), json!({}))]);
    }
    server.is_idle().await;
}

#[tokio::test]
async fn text_that_resembles_a_call_and_calls_with_tool_choice_none_are_content() {
    let text = "<tool_call>\n{\"name\": \"unheard\", \"arguments\": {}}\n</tool_call>";
    let looks = server(QWEN, text);
    let (_, answer) = looks.ask(CHAT, &request(&json!({}))).await;
    assert_eq!(
        answer["choices"][0]["message"],
        json!({ "role": "assistant", "content": text, "refusal": null })
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let (documents, _) = events(&looks.stream(CHAT, &request(&json!({ "stream": true }))).await);
    assert_eq!(assembled(&documents).0, text);
    let none = server(QWEN, ONE);
    let (_, answer) = none.ask(CHAT, &request(&json!({ "tool_choice": "none" }))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], ONE);
}

#[tokio::test]
async fn a_tool_call_that_was_cut_has_finish_reason_length() {
    let server = server(QWEN, ONE);
    let (_, whole) = server.ask(CHAT, &request(&json!({}))).await;
    for max in 1..whole["usage"]["completion_tokens"].as_u64().unwrap() - 1 {
        let cut = request(&json!({ "max_tokens": max }));
        let (_, answer) = server.ask(CHAT, &cut).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        let (documents, _) = events(&server.stream(CHAT, &with(cut, &json!({ "stream": true }))).await);
        let (content, calls, _) = assembled(&documents);
        let message = &answer["choices"][0]["message"];
        assert_eq!(content, message["content"].as_str().unwrap_or_default(), "{max}");
        assert_eq!(calls.len(), calls_of(&answer).len());
        for (streamed, whole) in calls.iter().zip(calls_of(&answer)) {
            assert_eq!(streamed["function"], whole["function"]);
        }
    }
}

#[tokio::test]
async fn llama_and_mistral_tool_call_formats_are_recognised() {
    let llama = server(LLAMA, "{\"name\": \"weather\", \"parameters\": {\"city\": \"Pune\"}}");
    let (_, answer) = llama.ask(CHAT, &request(&json!({}))).await;
    assert_eq!(called(calls_of(&answer)), [("weather".to_owned(), json!({ "city": "Pune" }))]);
    let mistral =
        server(MISTRAL, "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune\"}}]");
    let (_, answer) = mistral.ask(CHAT, &request(&json!({}))).await;
    assert_eq!(called(calls_of(&answer)), [("weather".to_owned(), json!({ "city": "Pune" }))]);
    assert_eq!(calls_of(&answer)[0]["id"].as_str().unwrap().len(), 9, "as its template wants them");
}

#[tokio::test]
async fn tool_calls_and_results_are_rendered_as_in_transformers() {
    let call = json!({ "id": "123456789", "type": "function", "function": { "name": "now", "arguments": "{\"b\": 1, \"a\": \"é\"}" } });
    let messages = json!([
        { "role": "user", "content": "When?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "123456789", "content": "42" },
    ]);
    for (template, expected) in [
        (
            QWEN,
            "<|im_start|>assistant\n<tool_call>\n{\"name\": \"now\", \"arguments\": {\"b\": 1, \"a\": \"é\"}}\n</tool_call><|im_end|>\n\
            <|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA,
            "assistant<|end_header_id|>\n\n{\"name\": \"now\", \"parameters\": {\"b\": 1, \"a\": \"é\"}}<|eot_id|>\
            <|start_header_id|>ipython<|end_header_id|>\n\n\"42\"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            MISTRAL,
            "[INST] When?[/INST][TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {\"b\": 1, \"a\": \"é\"}, \"id\": \"123456789\"}]</s>\
            [TOOL_RESULTS] {\"content\": 42, \"call_id\": \"123456789\"}[/TOOL_RESULTS]",
        ),
    ] {
        let server = server(template, "Now.");
        let body = json!({ "messages": messages, "tools": tools() });
        let (status, answer) = server.ask("/apply-template", &body).await;
        assert_eq!(status, 200, "{answer}");
        let prompt = answer["prompt"].as_str().unwrap();
        assert!(prompt.ends_with(expected), "{prompt}");
        assert!(prompt.contains("\"description\": \"It rains?\""), "{prompt}");
        let (status, answer) = server.ask(CHAT, &with(body, &json!({ "max_tokens": 9 }))).await;
        assert!(status == 200 || answer["error"]["code"] == "context_length_exceeded", "{answer}");
    }
}

/// Arguments as models write them: unusual JSON, and text that is not JSON.
const ARGUMENTS: &str = include_str!("../fixtures/tool_arguments.json");

fn asked_and_answered(call: &Value, result: &Value) -> Value {
    json!([{ "role": "user", "content": "Will it rain?" }, call, result])
}

#[tokio::test]
async fn tool_call_arguments_return_to_the_model_byte_for_byte() {
    let arguments: Vec<String> = serde_json::from_str(ARGUMENTS).unwrap();
    for (template, before, after) in [
        (QWEN, "{\"name\": \"now\", \"arguments\": ", "}\n</tool_call><|im_end|>"),
        (LLAMA, "{\"name\": \"now\", \"parameters\": ", "}<|eot_id|>"),
        (MISTRAL, "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": ", ", \"id\": \"123456789\"}]</s>"),
    ] {
        let server = server(template, "Now.");
        for written in &arguments {
            let call = json!({ "id": "123456789", "type": "function", "function": { "name": "now", "arguments": written } });
            let call = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
            let result = json!({ "role": "tool", "tool_call_id": "123456789", "content": "42" });
            let body = json!({ "messages": asked_and_answered(&call, &result), "tools": tools() });
            let (status, answer) = server.ask("/apply-template", &body).await;
            assert_eq!(status, 200, "{written}: {answer}");
            let prompt = answer["prompt"].as_str().unwrap();
            assert!(prompt.contains(&format!("{before}{written}{after}")), "{written}: {prompt}");
        }
    }
}

/// What eka sends as a call is accepted in the next request, as chat completions and as responses write it, and both make the
/// same prompt of it.
#[tokio::test]
async fn tool_calls_sent_by_eka_are_accepted_in_the_next_request() {
    const CUT: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune";
    const WRONG: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"a\nb\", \"days\": 1e400, \"wet\": True,}}\n</tool_call>";
    const LLAMA_WRONG: &str = "{\"name\": \"weather\", \"parameters\": {\"city\": 'x', \"days\": 1.0,}}";
    const MISTRAL_WRONG: &str =
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"days\": 1e400, \"wet\": True}}]";
    for (template, answer) in [(QWEN, CUT), (QWEN, WRONG), (LLAMA, LLAMA_WRONG), (MISTRAL, MISTRAL_WRONG)] {
        let server = server(template, answer);
        let (status, first) = server.ask(CHAT, &request(&json!({}))).await;
        assert_eq!(status, 200, "{first}");
        let message = &first["choices"][0]["message"];
        let id = &message["tool_calls"][0]["id"];
        let written = message["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert!(answer.contains(written), "{written:?}");
        let result = json!({ "role": "tool", "tool_call_id": id, "content": "Yes." });
        let next = json!({ "messages": asked_and_answered(message, &result) });
        let (_, rendered) =
            server.ask("/apply-template", &with(next.clone(), &json!({ "tools": tools() }))).await;
        let prompt = rendered["prompt"].as_str().unwrap_or_else(|| panic!("{rendered}"));
        assert!(prompt.contains(written), "{prompt}");
        let (status, second) = server.ask(CHAT, &request(&next)).await;
        assert_eq!(status, 200, "{second}");
        let flat = flat_tools();
        let fields = json!({ "input": "Will it rain?", "tools": flat, "max_output_tokens": 100 });
        let (status, response) = server.ask("/v1/responses", &fields).await;
        assert_eq!(status, 200, "{response}");
        let call = &response["output"][0];
        assert_eq!(call["arguments"], *written);
        let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "Yes." });
        let input = json!([{ "role": "user", "content": "Will it rain?" }, call, output]);
        let fields = json!({ "input": input, "tools": flat, "max_output_tokens": 100 });
        let (status, next) = server.ask("/v1/responses", &fields).await;
        assert_eq!(status, 200, "{next}");
        if template != MISTRAL {
            // Call ids appear in the prompts and have different tokens.
            assert_eq!(next["usage"]["input_tokens"], second["usage"]["prompt_tokens"]);
        }
    }
}

/// The same tools as responses have them.
fn flat_tools() -> Value {
    let flat = |tool: &Value| with(json!({ "type": "function" }), &tool["function"]);
    tools().as_array().unwrap().iter().map(flat).collect()
}

#[tokio::test]
async fn a_stop_string_inside_arguments_does_not_end_the_call() {
    let server = server(QWEN, ONE);
    let stopped = request(&json!({ "stop": "days" }));
    let (_, answer) = server.ask(CHAT, &stopped).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(calls_of(&answer)[0]["function"]["arguments"], "{\"city\": \"पुणे\", \"days\": 3}");
    let (documents, _) = events(&server.stream(CHAT, &with(stopped, &json!({ "stream": true }))).await);
    let (_, calls, reason) = assembled(&documents);
    assert_eq!((reason, &calls[0]["function"]), (json!("tool_calls"), &calls_of(&answer)[0]["function"]));
    let behind = request(&json!({ "stop": "</tool_call>" }));
    let (_, answer) = server.ask(CHAT, &behind).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "its arguments are whole: {answer}");
    let response =
        json!({ "input": "Rain?", "tools": flat_tools(), "stop": "days", "max_output_tokens": 200 });
    let (_, answer) = server.ask("/v1/responses", &response).await;
    let call = answer["output"].as_array().unwrap().last().unwrap();
    assert_eq!((&answer["status"], &call["status"]), (&json!("completed"), &json!("completed")));
}

#[tokio::test]
async fn a_call_with_a_missing_or_extra_brace_is_still_a_call() {
    const FEW: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}\n</tool_call>";
    const MANY: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}}\n</tool_call>";
    for text in [FEW, MANY] {
        let server = server(QWEN, text);
        let (_, answer) = server.ask(CHAT, &request(&json!({}))).await;
        let choice = &answer["choices"][0];
        assert_eq!(called(calls_of(&answer)), [("now".to_owned(), json!({}))], "{answer}");
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
    }
}

/// As transformers passes them: the template decides whether the model sees the name.
#[tokio::test]
async fn message_names_reach_the_template() {
    let template = "{% for m in messages %}{{ m.name or m.role }}: {{ m.content }}\n{% endfor %}";
    let server = server(template, "Yes.");
    let messages = json!([
        { "role": "system", "content": "Be kind.", "name": null },
        { "role": "user", "name": "ann", "content": "Hello." },
        { "role": "assistant", "name": "bot", "content": "Yes?" },
    ]);
    let (status, answer) = server.ask("/apply-template", &json!({ "messages": messages })).await;
    assert_eq!((status, &answer["prompt"]), (200, &json!("system: Be kind.\nann: Hello.\nbot: Yes?\n")));
}

#[tokio::test]
async fn unsupported_tool_requests_are_refused_by_name() {
    let qwen = server(QWEN, ONE);
    let bad = json!([{ "type": "function", "function": { "name": "a", "parameters": { "type": "object", "not": {} } } }]);
    let not_object =
        json!([{ "type": "function", "function": { "name": "a", "parameters": { "type": "array" } } }]);
    for (fields, code, param) in [
        (
            json!({ "tool_choice": "required", "tools": bad }),
            "invalid_constraint",
            "tools[0].function.parameters",
        ),
        (
            json!({ "tool_choice": "required", "tools": not_object }),
            "invalid_value",
            "tools[0].function.parameters.type",
        ),
        (json!({ "tool_choice": "required", "stop_token_ids": [7] }), "invalid_value", "stop_token_ids"),
        (json!({ "response_format": { "type": "json_object" } }), "invalid_value", "response_format"),
        (json!({ "tool_choice": "required", "tools": [] }), "invalid_value", "tool_choice"),
        (json!({ "parallel_tool_calls": 1 }), "invalid_type", "parallel_tool_calls"),
        (
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": { "name": "a", "arguments": 7 } }] }] }),
            "invalid_type",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({ "messages": [{ "role": "user" }] }), "missing_field", "messages[0].content"),
    ] {
        assert_refused(&qwen.ask(CHAT, &request(&fields)).await, code, param);
    }
}

/// The demo's model with another chat template: it has never seen a tool.
async fn program(template: &str) -> (Program, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let demo = root().join("models/demo");
    for part in ["base", "adapter"] {
        copy(&demo.join(part), &dir.path().join("demo").join(part));
    }
    fs::write(dir.path().join("demo/base/chat_template.jinja"), template).unwrap();
    let model = dir.path().join("demo");
    (Program::start(&["--model", model.to_str().unwrap()]).await, dir)
}

#[tokio::test]
async fn required_and_named_tool_choices_produce_valid_calls() {
    const TEMPLATE: &str = "{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}\
        {{ m.content }}{% endfor %}{# <tool_call> #}";
    let (program, _dir) = program(TEMPLATE).await;
    for seed in 0..4 {
        for choice in [json!("required"), json!({ "type": "function", "function": { "name": "weather" } })] {
            let fields = json!({ "tool_choice": choice, "parallel_tool_calls": false, "seed": seed });
            let (status, answer) = program.ask(CHAT, &request(&fields)).await;
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
            let calls = called(calls_of(&answer));
            assert_eq!(calls.len(), 1);
            check_call(&calls[0]);
            assert!(choice == "required" || calls[0].0 == "weather");
        }
    }
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    let auto = request(&json!({ "tools": strict, "seed": 1, "max_tokens": 30 }));
    let (status, answer) = program.ask(CHAT, &auto).await;
    assert_eq!(status, 200, "{answer}");
    called(calls_of(&answer)).iter().for_each(check_call);
}

fn check_call((name, arguments): &(String, Value)) {
    if name == "now" {
        assert_eq!(arguments, &json!({}));
        return;
    }
    assert!(["पुणे", "சென்னை"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=9).contains(&arguments["days"].as_u64().unwrap()), "{arguments}");
}
