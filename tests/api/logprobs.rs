//! Log-probabilities, echoed prompts and several choices, through the whole program.

use serde_json::{Value, json};

use crate::support::{
    faulty_worker::{hanging, signal_when_hung},
    program::{Program, expected},
    requests::with,
    server::{Server, ServerOptions, events},
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn chat(fields: &Value) -> Value {
    let prompt = &expected()[0].prompt;
    let request =
        json!({ "messages": [{ "role": "user", "content": prompt }], "temperature": 0, "max_tokens": 24 });
    with(request, fields)
}

/// The entries of a chat's stream, joined over its chunks, of one choice.
fn streamed_content(documents: &[Value], choice: usize) -> Vec<Value> {
    let of_choice = documents.iter().filter(|document| document["choices"][0]["index"] == choice);
    let lists = of_choice.filter_map(|document| document["choices"][0]["logprobs"]["content"].as_array());
    lists.flatten().cloned().collect()
}

#[tokio::test]
async fn chat_returns_log_probabilities_and_top_alternatives_of_every_token() {
    let program = Program::start(&[]).await;
    // Answers that use the prefix cache differ in the last digits only.
    let request = chat(&json!({ "logprobs": true, "top_logprobs": 20, "cache_prompt": false }));
    let (status, answer) = program.ask(CHAT, &request).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = content.iter().flat_map(bytes_of).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), choice["message"]["content"].as_str().unwrap());
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        let logprobs: Vec<f64> = top.iter().map(|entry| entry["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
        assert!(logprobs.iter().map(|logprob| logprob.exp()).sum::<f64>() < 1.0 + 1e-4);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]), "greedy");
    }
    let streamed = with(request, &json!({ "stream": true }));
    let stream = program.post(CHAT, &streamed).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&stream);
    assert!(is_done);
    assert_eq!(&streamed_content(&documents, 0), content, "the same streamed");
    let (_, plain) = program.ask(CHAT, &chat(&json!({}))).await;
    assert_eq!(plain["choices"][0]["message"], choice["message"]);
    assert!(plain["choices"][0]["logprobs"].is_null());
}

fn bytes_of(entry: &Value) -> Vec<u8> {
    let bytes = entry["bytes"].as_array().unwrap().iter();
    bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn log_probabilities_ignore_sampling_settings_and_constraints() {
    let program = Program::start(&[]).await;
    let (_, plain) = program.ask(CHAT, &chat(&json!({ "logprobs": true, "max_tokens": 1 }))).await;
    let first = |answer: &Value| answer["choices"][0]["logprobs"]["content"][0]["logprob"].as_f64().unwrap();
    let bias = json!({ "logprobs": true, "max_tokens": 1, "temperature": 0.1, "top_k": 1, "seed": 1 });
    let (_, cold) = program.ask(CHAT, &chat(&bias)).await;
    assert!((first(&plain) - first(&cold)).abs() < 1e-6);
    let formed = json!({ "logprobs": true, "top_logprobs": 3, "json_schema": { "const": { "a": "தமிழ்" } } });
    let (_, formed) = program.ask(CHAT, &chat(&formed)).await;
    let content = formed["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = content.iter().flat_map(bytes_of).collect();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        formed["choices"][0]["message"]["content"].as_str().unwrap()
    );
    let forced = content.iter().any(|entry| entry["top_logprobs"][0]["token"] != entry["token"]);
    assert!(forced, "a model that has never seen JSON would say something else: {content:?}");
}

#[tokio::test]
async fn completions_echo_the_prompt_and_score_it() {
    let program = Program::start(&[]).await;
    let request =
        json!({ "prompt": "नमस्ते Once upon", "max_tokens": 6, "temperature": 0, "echo": true, "logprobs": 3 });
    let (status, answer) = program.ask(COMPLETIONS, &request).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with("नमस्ते Once upon"), "{text}");
    let lists = &choice["logprobs"];
    let usage = &answer["usage"];
    let tokens = usize::try_from(usage["total_tokens"].as_u64().unwrap()).unwrap();
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[list].as_array().unwrap().len(), tokens, "{list} in {answer}");
    }
    assert!(lists["token_logprobs"][0].is_null() && lists["top_logprobs"][0].is_null());
    for at in 1..tokens {
        let (own, top) = (lists["token_logprobs"][at].as_f64().unwrap(), &lists["top_logprobs"][at]);
        assert!(own <= 0.0 && (3..=4).contains(&top.as_object().unwrap().len()), "{top}");
        assert_eq!(top[lists["tokens"][at].as_str().unwrap()], own);
    }
    // An answer is scored the same when it is read as a prompt.
    let again = with(request.clone(), &json!({ "prompt": text, "max_tokens": 1 }));
    let (_, again) = program.ask(COMPLETIONS, &again).await;
    let reread = &again["choices"][0]["logprobs"];
    for at in 1..tokens {
        assert_eq!(reread["tokens"][at], lists["tokens"][at]);
        let difference =
            reread["token_logprobs"][at].as_f64().unwrap() - lists["token_logprobs"][at].as_f64().unwrap();
        assert!(difference.abs() < 1e-3, "at {at}: {difference}");
    }
    let plain = with(request, &json!({ "logprobs": null, "stream": true }));
    let stream = program.post(COMPLETIONS, &plain).send().await.unwrap().text().await.unwrap();
    let joined: String =
        events(&stream).0.iter().filter_map(|document| document["choices"][0]["text"].as_str()).collect();
    assert_eq!(joined, text, "the same streamed");
}

#[tokio::test]
async fn max_tokens_0_with_echo_scores_the_prompt_and_returns_nothing_else() {
    let program = Program::start(&[]).await;
    let request =
        json!({ "prompt": "नमस्ते Once upon", "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 2 });
    let (_, with_answer) = program.ask(COMPLETIONS, &request).await;
    let request = with(request, &json!({ "max_tokens": 0 }));
    let (status, answer) = program.ask(COMPLETIONS, &request).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("नमस्ते Once upon"), &json!("length")));
    let usage = &answer["usage"];
    assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&json!(0), &usage["prompt_tokens"]));
    let prompt_tokens = usize::try_from(usage["prompt_tokens"].as_u64().unwrap()).unwrap();
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let longer = with_answer["choices"][0]["logprobs"][list].as_array().unwrap();
        assert_eq!(choice["logprobs"][list].as_array().unwrap(), &longer[..prompt_tokens], "{list}");
    }
    let (status, error) = program.ask(COMPLETIONS, &with(request, &json!({ "echo": false }))).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("max_tokens")), "{error}");
}

#[tokio::test]
async fn log_probabilities_continue_on_a_new_worker() {
    let program = Program::start(&["--faults", &hanging([(2, 8)])]).await;
    let request = json!({ "prompt": "Once", "ignore_eos": true, "max_tokens": 120, "temperature": 0, "echo": true, "logprobs": 1 });
    let (_, undisturbed) = program.ask(COMPLETIONS, &request).await;
    let disturbed = program.post(COMPLETIONS, &request).send();
    let (disturbed, ()) = tokio::join!(disturbed, signal_when_hung(&program, "KILL", 1));
    let disturbed: Value = disturbed.unwrap().json().await.unwrap();
    assert_eq!(disturbed["timings"]["resumed"], 1);
    let (whole, resumed) = (&undisturbed["choices"][0], &disturbed["choices"][0]);
    assert_eq!(whole["text"], resumed["text"]);
    assert_eq!(whole["logprobs"]["tokens"], resumed["logprobs"]["tokens"]);
}

#[tokio::test]
async fn n_choices_are_generated_in_order_with_different_seeds() {
    let program = Program::start(&[]).await;
    let request = chat(&json!({ "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12 }));
    let (status, answer) = program.ask(CHAT, &request).await;
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let content = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let alone = with(request.clone(), &json!({ "n": 1, "seed": 5 + index }));
        let (_, alone) = program.ask(CHAT, &alone).await;
        assert_eq!(
            content(&alone["choices"][0]),
            content(choice),
            "choice {index} is the answer of seed {}",
            5 + index
        );
        assert_eq!(alone["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"], "counted once");
    }
    assert_ne!(content(&choices[0]), content(&choices[1]));
    let streamed = with(request, &json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let stream = program.post(CHAT, &streamed).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&stream);
    assert!(is_done);
    let mut texts = [const { String::new() }; 3];
    for document in &documents[..documents.len() - 1] {
        let choice = &document["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(texts.to_vec(), choices.iter().map(content).collect::<Vec<_>>());
    let all = |document: &Value| document["usage"]["total_tokens"].clone();
    assert_eq!(all(documents.last().unwrap()), all(&answer));
    let fingerprint = answer["system_fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("fp_"));
    assert!(documents.iter().all(|document| document["system_fingerprint"] == fingerprint));
}

#[tokio::test]
async fn n_choices_that_exceed_the_queue_are_refused_as_a_whole() {
    let server = Server::start(ServerOptions { max_jobs: 1, ..ServerOptions::default() });
    // Three groups of eight: one that runs, one that waits, and one too many.
    let request = json!({ "prompt": ["a", "b", "c"], "n": 8, "max_tokens": 4 });
    let (status, answer) = server.ask(COMPLETIONS, &request).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_full")));
    server.is_idle().await;
}

#[tokio::test]
async fn invalid_logprobs_and_n_are_refused_by_name() {
    let server = Server::start(ServerOptions::default());
    for (route, fields, param) in [
        (CHAT, json!({ "top_logprobs": 3 }), "top_logprobs"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (CHAT, json!({ "n": 9 }), "n"),
        (COMPLETIONS, json!({ "n": 0 }), "n"),
        (COMPLETIONS, json!({ "logprobs": 21 }), "logprobs"),
        (COMPLETIONS, json!({ "n": 3, "best_of": 2 }), "best_of"),
    ] {
        let request = match route {
            CHAT => json!({ "messages": [{ "role": "user", "content": "hello" }] }),
            _ => json!({ "prompt": "hello" }),
        };
        let (status, answer) = server.ask(route, &with(request, &fields)).await;
        let error = &answer["error"];
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (400, &json!("invalid_value"), &json!(param)),
            "{answer}"
        );
    }
}
