//! Requests as clients of other servers write them: null, whole numbers with a point, and fields that eka does not have.

use eka::config::UnknownFields;
use serde_json::{Map, Value, json};

use crate::support::server::{ANSWER, CONTEXT_LENGTH, Server, ServerOptions, VOCABULARY, events};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const QWEN: &str = include_str!("../fixtures/templates/qwen2.5.jinja");

/// A request of `route` with a few more fields.
fn request(route: &str, fields: &Value) -> Value {
    let mut request = match route {
        CHAT => json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 4 }),
        RESPONSES => json!({ "input": "hello", "max_output_tokens": 4 }),
        COMPLETIONS => json!({ "prompt": "hello", "max_tokens": 4 }),
        _ => json!({ "prompt": "hello", "max_new_tokens": 4 }),
    };
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

async fn accepted(server: &Server, route: &str, fields: &Value) -> Value {
    let (status, answer) = server.ask(route, &request(route, fields)).await;
    assert_eq!(status, 200, "{route} {fields}: {answer}");
    answer
}

#[tokio::test]
async fn null_means_absent_for_every_field_also_nested() {
    let server = Server::start(ServerOptions { template: Some(QWEN), ..ServerOptions::default() });
    for fields in [
        json!({ "temperature": null, "stop": null, "logit_bias": null, "tools": null, "tool_choice": null }),
        json!({ "prompt_cache_retention": null, "store": null, "service_tier": null, "a_field_of_next_year": null }),
        json!({ "stream": null, "stream_options": null, "logit_bias": { "7": null }, "response_format": null }),
    ] {
        for route in [NATIVE, COMPLETIONS, CHAT, RESPONSES] {
            if route == CHAT || route == RESPONSES || fields.get("tools").is_none() {
                accepted(&server, route, &fields).await;
            }
        }
    }
    let message = json!({
        "role": "assistant", "content": "Yes?", "name": null, "refusal": null, "audio": null, "annotations": null,
        "tool_calls": null, "tool_call_id": null, "function_call": null, "reasoning_content": null, "new": null,
    });
    let call = json!({ "id": null, "type": null, "index": null, "custom": null,
        "function": { "name": "a", "arguments": null, "parsed_arguments": null } });
    let part = json!({ "type": "text", "text": "hello", "annotations": null, "cache_control": null });
    let function =
        json!({ "name": "a", "description": null, "parameters": null, "strict": null, "new": null });
    for fields in [
        json!({ "messages": [{ "role": "user", "content": [part] }, message] }),
        json!({ "messages": [{ "role": "assistant", "content": null, "tool_calls": [call] }] }),
        json!({ "tools": [{ "type": "function", "function": function, "new": null }] }),
        json!({ "response_format": { "type": "text", "json_schema": null } }),
        json!({ "logprobs": null, "top_logprobs": null, "n": null, "reasoning_effort": null, "reasoning": { "effort": null } }),
    ] {
        accepted(&server, CHAT, &fields).await;
    }
    let flat =
        json!({ "type": "function", "name": "a", "description": null, "parameters": null, "strict": null });
    let item =
        json!({ "type": null, "id": null, "status": null, "role": "user", "content": "hello", "new": null });
    for fields in [
        json!({ "reasoning": { "effort": null, "summary": null }, "text": { "format": null, "verbosity": null } }),
        json!({ "input": [item], "instructions": null, "tools": [flat], "previous_response_id": null, "prompt": null }),
    ] {
        accepted(&server, RESPONSES, &fields).await;
    }
}

#[tokio::test]
async fn integers_may_be_written_as_5_0_or_5e0() {
    let server = Server::start(ServerOptions::default());
    for route in [NATIVE, COMPLETIONS, CHAT, RESPONSES] {
        let fields = json!({
            "top_k": 5.0, "seed": 7.0, "dry_allowed_length": 2.0, "timeout_ms": 1e3, "queue_timeout_ms": 1e3,
            "max_time_ms": 1e3, "stop_token_ids": [7.0, 1e1], "keep_alive": 5.0,
        });
        accepted(&server, route, &fields).await;
    }
    let exact = json!({ "max_tokens": 3.0, "n": 2.0, "best_of": 2.0, "logprobs": 1.0 });
    let answer = accepted(&server, COMPLETIONS, &exact).await;
    assert_eq!(
        (&answer["usage"]["completion_tokens"], answer["choices"].as_array().unwrap().len()),
        (&json!(6), 2)
    );
    accepted(&server, COMPLETIONS, &json!({ "prompt": [20.0, 2e1] })).await;
    accepted(
        &server,
        CHAT,
        &json!({ "max_tokens": null, "max_completion_tokens": 2e0, "logprobs": true, "top_logprobs": 1.0 }),
    )
    .await;
    accepted(&server, RESPONSES, &json!({ "max_output_tokens": 2.0 })).await;
    accepted(&server, NATIVE, &json!({ "max_new_tokens": 2.0 })).await;
    let (status, answer) = server.ask("/detokenize", &json!({ "tokens": [20.0] })).await;
    assert_eq!(status, 200, "{answer}");
    let same = |seed: Value| json!({ "seed": seed, "temperature": 2 });
    let seeds = [
        accepted(&server, NATIVE, &same(json!(7.0))).await,
        accepted(&server, NATIVE, &same(json!(7))).await,
    ];
    assert_eq!(seeds[0]["seed"], seeds[1]["seed"]);
    for (field, value) in [("top_k", json!(5.5)), ("seed", json!(0.5)), ("max_new_tokens", json!(1.5))] {
        let (status, answer) = server.ask(NATIVE, &request(NATIVE, &json!({ field: value }))).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(field)));
    }
}

/// What clients of vLLM, llama-server, SGLang, TGI, Ollama and OpenAI send when they want nothing of it.
fn off_everywhere() -> Value {
    let fields = r#"{
        "top_k": -1, "min_p": 0, "typical_p": 1, "typ_p": 1.0, "tfs_z": 1, "top_a": 0, "top_n_sigma": -1.0, "mirostat": 0,
        "mirostat_tau": 5.0, "mirostat_eta": 0.1, "xtc_probability": 0, "xtc_threshold": 0.1, "dynatemp_range": 0.0,
        "dynatemp_exponent": 1, "repeat_penalty": 1.0, "repeat_last_n": 64, "dry_penalty_last_n": -1, "n_keep": 0, "n_probs": 0,
        "min_keep": 0, "n_predict": -1, "id_slot": -1, "samplers": null, "min_tokens": 0, "use_beam_search": false,
        "length_penalty": 1, "early_stopping": false, "skip_special_tokens": true, "spaces_between_special_tokens": true,
        "include_stop_str_in_output": false, "guided_json": null, "guided_regex": null, "guided_choice": null,
        "structured_outputs": null, "prompt_logprobs": null, "bad_words": [], "allowed_token_ids": null,
        "truncate_prompt_tokens": null, "add_generation_prompt": true, "continue_final_message": false,
        "chat_template_kwargs": {}, "documents": null, "return_token_ids": false, "priority": 0, "request_id": "abc",
        "kv_transfer_params": null, "ebnf": null, "no_stop_trim": false, "separate_reasoning": true, "rid": "abc",
        "custom_params": null, "seed": -1, "watermark": false, "do_sample": true, "think": false, "options": {}, "format": "",
        "user": "u", "store": false, "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "metadata": { "a": "b" }, "verbosity": "low", "speculative.n_max": 16,
        "n": 1.0, "logprobs": null, "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "grammar": "",
        "num_beams": 1, "bad_words_ids": [], "extra_body": {}, "safe_prompt": false, "thinking": { "type": "disabled" },
        "usage": { "include": true }, "provider": {}
    }"#;
    serde_json::from_str(fields).unwrap()
}

#[tokio::test]
async fn fields_of_other_servers_are_accepted_at_neutral_values() {
    let server = Server::start(ServerOptions::default());
    for route in [NATIVE, COMPLETIONS, CHAT, RESPONSES] {
        accepted(&server, route, &off_everywhere()).await;
        accepted(&server, route, &json!({ "top_k": VOCABULARY * 1000 })).await;
    }
    accepted(&server, COMPLETIONS, &json!({ "best_of": 1, "echo": false, "suffix": "", "logprobs": false }))
        .await;
    accepted(
        &server,
        CHAT,
        &json!({ "best_of": 1, "echo": false, "prediction": { "type": "content", "content": "a" } }),
    )
    .await;
    let inert =
        json!({ "include": ["reasoning.encrypted_content"], "max_tool_calls": 3, "truncation": "disabled" });
    accepted(&server, RESPONSES, &inert).await;
    let unlimited = accepted(&server, NATIVE, &json!({ "max_new_tokens": -1 })).await;
    assert_eq!(unlimited["finish_reason"], "stop");
    let seeds = [
        accepted(&server, NATIVE, &json!({ "seed": -1 })).await,
        accepted(&server, NATIVE, &json!({ "seed": -1 })).await,
    ];
    assert_ne!(seeds[0]["seed"], seeds[1]["seed"], "-1 asks for a random one");
}

#[tokio::test]
async fn an_unsupported_field_is_refused_with_an_alternative() {
    let server = Server::start(ServerOptions::default());
    for (fields, param, instead) in [
        (json!({ "mirostat": 2 }), "mirostat", "send 0"),
        (json!({ "repeat_penalty": 1.1 }), "repeat_penalty", "use repetition_penalty"),
        (json!({ "skip_special_tokens": false }), "skip_special_tokens", "send true"),
        (json!({ "use_beam_search": true }), "use_beam_search", "send false"),
        (json!({ "top_n_sigma": 1 }), "top_n_sigma", "send -1 or 0"),
    ] {
        for route in [NATIVE, COMPLETIONS, CHAT, RESPONSES] {
            let (status, answer) = server.ask(route, &request(route, &fields)).await;
            let error = &answer["error"];
            let found = (status, &error["code"], &error["param"]);
            assert_eq!(found, (400, &json!("unsupported_field"), &json!(param)), "{answer}");
            assert!(error["message"].as_str().unwrap().contains(instead), "{answer}");
        }
    }
}

#[tokio::test]
async fn the_openapi_document_lists_neutral_values_and_they_are_accepted() {
    let server = Server::start(ServerOptions::default());
    let document: Value = server.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    for (route, name) in [
        (NATIVE, "GenerateLiteRequest"),
        (COMPLETIONS, "CompletionRequest"),
        (CHAT, "ChatRequest"),
        (RESPONSES, "ResponseRequest"),
    ] {
        let parts = document["components"]["schemas"][name]["allOf"].as_array().unwrap();
        let properties = &parts.last().unwrap()["properties"];
        let off = |(name, described): (&String, &Value)| {
            described["description"].as_str()?.starts_with("Accepted; ").then_some(())?;
            Some((name.clone(), described["enum"].as_array()?.last()?.clone()))
        };
        let off: Map<String, Value> = properties.as_object().unwrap().iter().filter_map(off).collect();
        assert!(off.len() > 70, "{route} {}", off.len());
        accepted(&server, route, &off.into()).await;
    }
}

#[tokio::test]
async fn unknown_fields_warn_ignores_them_and_names_them_in_a_header() {
    let server =
        Server::start(ServerOptions { unknown_fields: UnknownFields::Warn, ..ServerOptions::default() });
    let ignored = |response: &reqwest::Response| {
        response.headers().get("x-eka-ignored-fields").map(|names| names.to_str().unwrap().to_owned())
    };
    for route in [NATIVE, COMPLETIONS, CHAT, RESPONSES] {
        for stream in [false, true] {
            let fields =
                json!({ "temprature": 1, "mirostat": 2, "top_a": 0, "a\r\nb: c": "é", "stream": stream });
            let response = server.post(route, &request(route, &fields)).send().await.unwrap();
            assert_eq!(response.status(), 200, "{route}");
            let names = ignored(&response).unwrap();
            let mut names: Vec<&str> = names.split(", ").collect();
            names.sort_unstable();
            assert_eq!(names, ["a%0D%0Ab%3A%20c", "mirostat", "temprature"], "{route}");
        }
        let response = server.post(route, &request(route, &json!({}))).send().await.unwrap();
        assert_eq!((response.status().as_u16(), ignored(&response)), (200, None));
    }
    let message =
        json!({ "role": "user", "content": [{ "type": "text", "text": "a", "mood": 1 }], "mood": "good" });
    let messages = json!({ "messages": [message] });
    for route in [CHAT, "/tokenize", "/apply-template"] {
        let response = server.post(route, &messages).send().await.unwrap();
        let names = ignored(&response);
        assert_eq!(response.status(), 200, "{route}");
        assert_eq!(names.unwrap(), "messages[0].content[0].mood, messages[0].mood");
    }
    let (status, answer) = server.ask(NATIVE, &request(NATIVE, &json!({ "temperature": 3 }))).await;
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("temperature")),
        "what eka has is still checked"
    );
}

#[tokio::test]
async fn ids_have_openais_format_and_are_unique() {
    let server = Server::start(ServerOptions { template: Some(QWEN), ..ServerOptions::default() });
    for (route, prefix) in
        [(COMPLETIONS, "cmpl-"), (CHAT, "chatcmpl-"), (RESPONSES, "resp_"), (NATIVE, "gen-")]
    {
        let ids = [accepted(&server, route, &json!({})).await, accepted(&server, route, &json!({})).await];
        let [one, other] = ids.each_ref().map(|answer| answer["id"].as_str().unwrap());
        let random = one.strip_prefix(prefix).unwrap_or_else(|| panic!("{one}"));
        // eka's own route appends the job's number.
        let random = if route == NATIVE { random.rsplit_once('-').unwrap().0 } else { random };
        assert!(random.len() >= 24 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{one}");
        assert_ne!(one, other);
    }
    let answer = accepted(&server, RESPONSES, &json!({})).await;
    assert!(answer["output"][0]["id"].as_str().unwrap().starts_with("msg_"), "{answer}");
    let calls = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let server = Server::start(ServerOptions {
        template: Some(QWEN),
        answer: Some(calls),
        ..ServerOptions::default()
    });
    let tools = json!({ "tools": [{ "type": "function", "name": "now" }], "max_output_tokens": 64 });
    let answer = accepted(&server, RESPONSES, &tools).await;
    let item = &answer["output"][0];
    assert!(item["id"].as_str().unwrap().starts_with("fc_"), "{answer}");
    assert!(item["call_id"].as_str().unwrap().starts_with("call_"), "{answer}");
    let tools = json!({ "tools": [{ "type": "function", "function": { "name": "now" } }], "max_tokens": 64, "stream": true });
    let (documents, _) = events(&server.stream(CHAT, &request(CHAT, &tools)).await);
    let ids: Vec<&Value> = documents.iter().map(|document| &document["id"]).collect();
    assert!(ids.iter().all(|id| **id == *ids[0]), "one id for a whole stream");
}

#[tokio::test]
async fn stream_options_need_a_stream() {
    let server = Server::start(ServerOptions::default());
    let options =
        json!({ "stream_options": { "include_usage": null, "include_obfuscation": null, "new": null } });
    for route in [NATIVE, COMPLETIONS, CHAT] {
        let (status, answer) = server.ask(route, &request(route, &options)).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("stream_options")), "{route}: {answer}");
        let mut streamed = request(route, &options);
        streamed["stream"] = json!(true);
        assert!(events(&server.stream(route, &streamed).await).1, "{route}");
    }
}

#[tokio::test]
async fn the_answer_has_its_stop_string_on_request() {
    let server = Server::start(ServerOptions::default());
    let stop = ANSWER.split(' ').nth(1).unwrap();
    let before = &ANSWER[..ANSWER.find(stop).unwrap()];
    for (included, expected) in [(false, before.to_owned()), (true, format!("{before}{stop}"))] {
        let fields = json!({ "stop": stop, "include_stop_str_in_output": included, "max_tokens": 20 });
        let answer = accepted(&server, COMPLETIONS, &fields).await;
        assert_eq!(answer["choices"][0]["text"], json!(expected));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let mut streamed = request(COMPLETIONS, &fields);
        streamed["stream"] = json!(true);
        let (events, _) = events(&server.stream(COMPLETIONS, &streamed).await);
        let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!(text, expected);
    }
}

#[tokio::test]
async fn the_last_tokens_of_a_prompt_are_kept_on_request() {
    let server = Server::start(ServerOptions::default());
    let long = "hello ".repeat(2_000);
    for prompt in [json!(long), json!(vec![40; 2_000])] {
        for (keep, kept) in [(json!(7), 7), (json!(-1), CONTEXT_LENGTH - 4)] {
            let fields = json!({ "prompt": prompt, "truncate_prompt_tokens": keep });
            let answer = accepted(&server, COMPLETIONS, &fields).await;
            assert_eq!(answer["usage"]["prompt_tokens"], kept);
        }
    }
    let ids = json!({ "prompt": [40, 41, 42, 43], "truncate_prompt_tokens": 2 });
    accepted(&server, COMPLETIONS, &ids).await;
    assert_eq!(server.last_job().prompt, [42, 43]);
    let mut right = ids.clone();
    right["truncation_side"] = json!("right");
    accepted(&server, COMPLETIONS, &right).await;
    assert_eq!(server.last_job().prompt, [40, 41]);
    for (keep, code) in
        [(json!(0), "invalid_value"), (json!(-2), "invalid_value"), (json!("a"), "invalid_type")]
    {
        let fields = request(COMPLETIONS, &json!({ "truncate_prompt_tokens": keep }));
        let (status, answer) = server.ask(COMPLETIONS, &fields).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_of_a_chat_begins_with_the_message_that_it_continues_on_request() {
    let server = Server::start(ServerOptions::default());
    let begun =
        json!([{ "role": "user", "content": "hello" }, { "role": "assistant", "content": "I say: " }]);
    let content = async |fields: Value| {
        let answer = accepted(&server, CHAT, &fields).await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let fields = json!({ "messages": begun, "continue_final_message": true, "max_tokens": 20 });
    let mut echoed = fields.clone();
    echoed["echo"] = json!(true);
    assert_eq!(content(echoed).await, format!("I say: {}", content(fields).await));
    let question = content(json!({ "echo": true, "max_tokens": 20 })).await;
    assert_eq!(question, ANSWER, "a message of the user is not repeated");
}
