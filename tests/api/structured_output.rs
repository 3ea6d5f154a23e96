//! Constrained answers of the real server; the demonstration model has never seen JSON.

use serde_json::{Value, json};

use crate::support::{
    faulty_worker::{hanging, stream_and},
    processes::send_signal,
    program::{Program, expected},
    requests::{assert_refused, with},
    server::{Server, ServerOptions, events},
};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Names and values in six of the demo's scripts; everything is bounded, so that every answer ends.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "नाम": { "type": "string", "maxLength": 12 },
            "மொழி": { "enum": ["தமிழ்", "हिन्दी", "ಕನ್ನಡ", "తెలుగు", "বাংলা", "ગુજરાતી"] },
            "count": { "type": "integer", "minimum": 1, "maximum": 99 },
            "polite": { "type": "boolean" },
        },
        "required": ["नाम", "மொழி", "count", "polite"],
        "additionalProperties": false,
    })
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value.as_object().unwrap().len(), 4, "{text}");
    assert!(value["नाम"].as_str().unwrap().chars().count() <= 12, "{text}");
    let languages = ["தமிழ்", "हिन्दी", "ಕನ್ನಡ", "తెలుగు", "বাংলা", "ગુજરાતી"];
    assert!(languages.contains(&value["மொழி"].as_str().unwrap()), "{text}");
    assert!((1..=99).contains(&value["count"].as_u64().unwrap()) && value["polite"].is_boolean(), "{text}");
}

#[tokio::test]
async fn answers_match_their_schema_in_ten_languages_greedy_sampled_and_streamed() {
    let program = Program::start(&[]).await;
    for (seed, prompt) in expected().into_iter().map(|expected| expected.prompt).enumerate() {
        for sampling in [json!({}), json!({ "temperature": 1.5, "seed": seed, "top_p": 0.95 })] {
            let request =
                json!({ "messages": [{ "role": "user", "content": prompt }], "max_new_tokens": 200 });
            let request = with(with(request, &sampling), &json!({ "json_schema": schema() }));
            let (answer, pieces) = program.both_ways(&request).await;
            assert_eq!(answer["finish_reason"], "stop", "{answer}");
            check(answer["text"].as_str().unwrap());
            assert_eq!(json!(pieces.concat()), answer["text"], "the same streamed");
        }
    }
}

#[tokio::test]
async fn structural_tags_are_enforced_in_the_shapes_of_vllm_and_xgrammar() {
    let program = Program::start(&[]).await;
    let of_integer = json!({ "type": "object", "properties": { "a": { "type": "integer", "minimum": 1, "maximum": 9 } }, "required": ["a"] });
    let content = json!({ "type": "json_schema", "json_schema": of_integer });
    let tag = json!({ "type": "tag", "begin": "<f>", "content": content, "end": "</f>" });
    let one = json!({ "type": "triggered_tags", "triggers": ["<f>"], "tags": [tag], "at_least_one": true, "stop_after_first": true });
    let structures = json!([{ "begin": "<f>", "schema": of_integer, "end": "</f>" }]);
    let ends_with_tag = |text: &str| {
        let (_, rest) = text.split_once("<f>").unwrap_or_else(|| panic!("{text}"));
        let value: Value = serde_json::from_str(rest.strip_suffix("</f>").unwrap()).unwrap();
        assert!((1..=9).contains(&value["a"].as_u64().unwrap()), "{text}");
    };
    let chat = |more: &Value| {
        with(json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 400 }), more)
    };
    for fields in [
        json!({ "response_format": { "type": "structural_tag", "format": tag } }),
        json!({ "structured_outputs": { "structural_tag": json!({ "format": tag }).to_string() } }),
    ] {
        let (status, answer) = program.ask(CHAT, &chat(&fields)).await;
        assert_eq!(status, 200, "{answer}");
        ends_with_tag(answer["choices"][0]["message"]["content"].as_str().unwrap());
    }
    let biased = json!({ "logit_bias": {}, "response_format": { "type": "structural_tag", "format": one } });
    let (status, answer) = program.ask(CHAT, &chat(&biased)).await;
    assert_eq!(status, 200, "{answer}");
    if answer["choices"][0]["finish_reason"] == "stop" {
        ends_with_tag(answer["choices"][0]["message"]["content"].as_str().unwrap());
    }
    let older = json!({ "response_format": { "type": "structural_tag", "structures": structures, "triggers": ["<f"] } });
    let (status, answer) = program.ask(CHAT, &chat(&older)).await;
    assert_eq!(status, 200, "{answer}");
    let wrong = json!({ "response_format": { "type": "structural_tag", "format": { "type": "tag" } } });
    let (status, error) = program.ask(CHAT, &chat(&wrong)).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("response_format")), "{error}");
}

#[tokio::test]
async fn response_format_is_enforced_in_chat_and_completions() {
    let program = Program::start(&[]).await;
    let named = json!({ "name": "word", "strict": true, "schema": schema() });
    let format =
        json!({ "response_format": { "type": "json_schema", "json_schema": named }, "max_tokens": 200 });
    let chat = with(json!({ "messages": [{ "role": "user", "content": "Please" }], "seed": 3 }), &format);
    let (status, answer) = program.ask(CHAT, &chat).await;
    assert_eq!(status, 200, "{answer}");
    check(answer["choices"][0]["message"]["content"].as_str().unwrap());
    let (_, answer) =
        program.ask(COMPLETIONS, &with(json!({ "prompt": "Please", "seed": 3 }), &format)).await;
    check(answer["choices"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn regular_expressions_and_grammars_are_enforced() {
    let program = Program::start(&[]).await;
    let digits =
        json!({ "prompt": "Once", "regex": "[1-9][0-9]{2}-(नमस्ते|வணக்கம்)", "temperature": 1.0, "seed": 5 });
    let (_, answer) = program.ask(NATIVE, &digits).await;
    let text = answer["text"].as_str().unwrap();
    let (number, greeting) = text.split_once('-').unwrap();
    assert!((100..1_000).contains(&number.parse::<u32>().unwrap()), "{text}");
    assert!(["नमस्ते", "வணக்கம்"].contains(&greeting), "{text}");
    let sums = json!({ "prompt": "Once", "grammar": "start: N (\"+\" N){2}\nN: /[1-9]/" });
    let (_, answer) = program.ask(NATIVE, &sums).await;
    let text = answer["text"].as_str().unwrap();
    assert!(text.len() == 5 && text.split('+').all(|n| n.parse::<u8>().unwrap() > 0), "{text}");
}

#[tokio::test]
async fn a_cut_constrained_answer_is_a_valid_prefix_with_finish_reason_length() {
    let program = Program::start(&[]).await;
    let request = json!({ "prompt": "Once", "json_schema": schema(), "max_new_tokens": 200 });
    let (_, whole) = program.ask(NATIVE, &request).await;
    let whole_text = whole["text"].as_str().unwrap();
    for max in 1..whole["usage"]["completion_tokens"].as_u64().unwrap() {
        let (_, cut) = program.ask(NATIVE, &with(request.clone(), &json!({ "max_new_tokens": max }))).await;
        assert_eq!(
            (&cut["finish_reason"], &cut["usage"]["completion_tokens"]),
            (&json!("length"), &json!(max))
        );
        assert!(whole_text.starts_with(cut["text"].as_str().unwrap()), "{cut} of {whole_text}");
    }
}

#[tokio::test]
async fn a_constrained_answer_complete_at_its_last_token_has_finish_reason_stop() {
    let program = Program::start(&[]).await;
    // The last tokens of these are picked, forced one by one, and forced together.
    let forms = [
        json!({ "regex": "[0-9]{7}" }),
        json!({ "json_schema": { "type": "object", "properties": { "a": { "type": "boolean" } }, "required": ["a"], "additionalProperties": false } }),
        json!({ "grammar": "start: /[0-9]{3}/ \" நமஸ்காரம், வணக்கம்\"" }),
    ];
    for form in forms {
        let request = with(json!({ "prompt": "Once", "max_new_tokens": 200 }), &form);
        let (_, roomy) = program.ask(NATIVE, &request).await;
        assert_eq!(roomy["finish_reason"], "stop", "{roomy}");
        let tokens = roomy["usage"]["completion_tokens"].as_u64().unwrap();
        let exact = with(request.clone(), &json!({ "max_new_tokens": tokens }));
        let (answer, _) = program.both_ways(&exact).await;
        assert_eq!((&answer["text"], &answer["finish_reason"]), (&roomy["text"], &json!("stop")), "{form}");
        let (_, cut) = program.ask(NATIVE, &with(exact, &json!({ "max_new_tokens": tokens - 1 }))).await;
        assert_eq!(cut["finish_reason"], "length", "{form}");
    }
    // A number could have another digit, so this one may be cut.
    let open = json!({ "prompt": "Once", "regex": "[0-9]+", "max_new_tokens": 1 });
    assert_eq!(program.ask(NATIVE, &open).await.1["finish_reason"], "length");
}

#[tokio::test]
async fn a_constraint_continues_on_a_new_worker() {
    let plan = hanging([(2, 1), (3, 4), (4, 8), (6, 1), (7, 4), (8, 8)]);
    let program = Program::start(&["--faults", &plan]).await;
    // A value of many tokens that are picked between two runs of forced ones.
    let schema = json!({
        "type": "object",
        "properties": { "पहला": { "type": "string", "minLength": 60, "maxLength": 80 }, "दूसरा": { "const": "தமிழ் மொழி" } },
        "required": ["पहला", "दूसरा"], "additionalProperties": false,
    });
    for sampling in [json!({}), json!({ "temperature": 1.3, "seed": 11 })] {
        let request = json!({ "prompt": "Once", "json_schema": schema, "max_new_tokens": 400 });
        let request = with(request, &sampling);
        let (_, undisturbed) = program.ask(NATIVE, &request).await;
        let text = undisturbed["text"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(text).is_ok(), "{undisturbed}");
        for _ in 0..3 {
            let (documents, is_done) = stream_and(&program, &request, "KILL", 1).await;
            let last = documents.last().unwrap();
            assert!(is_done, "{last}");
            assert_eq!(last["text"], undisturbed["text"]);
            assert_eq!(last["usage"]["total_tokens"], undisturbed["usage"]["total_tokens"]);
        }
    }
}

#[tokio::test]
async fn a_constrained_answer_does_not_change_later_answers() {
    let program = Program::start(&[]).await;
    let first = &expected()[0];
    let free = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
    let bound = json!({ "prompt": "Once", "json_schema": schema() });
    for _ in 0..2 {
        let (_, answer) = program.ask(NATIVE, &free).await;
        assert_eq!(answer["text"], json!(first.text));
        program.ask(NATIVE, &bound).await;
    }
    send_signal("KILL", program.worker_pid());
    let (status, answer) = program.ask(NATIVE, &bound).await;
    assert_eq!(status, 200, "a new worker reads the tokenizer again: {answer}");
}

/// Rejected before a worker is needed.
async fn refused(server: &Server, fields: Value, code: &str, param: &str) -> String {
    let request = with(json!({ "prompt": "hello" }), &fields);
    let answer = server.ask(NATIVE, &request).await;
    assert_refused(&answer, code, param);
    let error = &answer.1["error"];
    assert_eq!(error["type"], "invalid_request_error");
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_unsupported_constraint_is_a_400_with_the_reason() {
    let server = Server::start(ServerOptions::default());
    let not = json!({ "json_schema": { "type": "array", "items": { "not": { "type": "null" } } } });
    let said = refused(&server, not, "invalid_constraint", "json_schema").await;
    assert!(said.contains("\"not\" at #/items"), "{said}");
    let named = json!({ "name": "n", "schema": { "type": "array", "uniqueItems": true } });
    let format = json!({ "response_format": { "type": "json_schema", "json_schema": named } });
    let said = refused(&server, format, "invalid_constraint", "response_format").await;
    assert!(said.contains("\"uniqueItems\" at #"), "{said}");
    let said = refused(&server, json!({ "regex": "(a" }), "invalid_constraint", "regex").await;
    assert_eq!(said, "regex cannot be used: unclosed group; correct it");
    let said = refused(&server, json!({ "grammar": "start: a" }), "invalid_constraint", "grammar").await;
    assert!(said.contains('a') && !said.contains('\n'), "{said}");
    let deep = json!({ "regex": "(".repeat(1_000) });
    let said = refused(&server, deep, "invalid_constraint", "regex").await;
    assert!(said.contains("1000 levels deep, at most 128"), "{said}");
}

#[tokio::test]
async fn end_tokens_beside_a_constraint_are_rejected_by_name_and_stop_strings_are_accepted() {
    let server = Server::start(ServerOptions::default());
    let form = json!({ "regex": "a+" });
    for (name, value) in [("stop_token_ids", json!([7])), ("ignore_eos", json!(true))] {
        let said = refused(&server, with(form.clone(), &json!({ name: value })), "invalid_value", name).await;
        assert!(said.contains("cannot be combined with regex"), "{said}");
    }
    // Stop strings end the content that is outside of a form.
    let (status, answer) = server.ask(NATIVE, &with(form, &json!({ "prompt": "hello", "stop": "a" }))).await;
    assert_eq!(status, 200, "{answer}");
    let both = json!({ "regex": "a", "response_format": { "type": "json_object" } });
    refused(&server, both, "invalid_value", "regex").await;
}

#[tokio::test]
async fn streams_continue_while_an_expensive_schema_is_compiled() {
    let server = Server::start(ServerOptions {
        step: std::time::Duration::from_millis(20),
        ..ServerOptions::default()
    });
    let patterns: Vec<Value> = (0..1_500).map(|i| json!({ "pattern": format!("a{{{i}}}") })).collect();
    let bomb = json!({ "prompt": "hello", "json_schema": { "type": "string", "allOf": patterns } });
    let stream = async {
        let begun = std::time::Instant::now();
        let stream = server.stream(NATIVE, &json!({ "prompt": "Please", "stream": true })).await;
        assert!(events(&stream).1);
        begun.elapsed()
    };
    let ((status, answer), took) = tokio::join!(server.ask(NATIVE, &bomb), stream);
    assert!(took.as_secs_f64() < 4.0, "the stream took {took:?} beside {status}: {answer}");
}
