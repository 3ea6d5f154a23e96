//! vLLM's fields for tokens: their ids, the log-probabilities of the prompt, the fewest tokens, usage in every event.

use serde_json::{Value, json};

use crate::support::{
    program::Program,
    requests::{assert_refused, with},
    server::{Server, ServerOptions, events},
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn completion(fields: &Value) -> Value {
    with(
        json!({ "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "ignore_eos": true }),
        fields,
    )
}

fn chat(fields: &Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Once upon a time" }]);
    with(json!({ "messages": messages, "max_tokens": 6, "temperature": 0, "ignore_eos": true }), fields)
}

async fn ask(program: &Program, path: &str, body: &Value) -> Value {
    let (status, answer) = program.ask(path, body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn stream(program: &Program, path: &str, body: Value) -> Vec<Value> {
    let body = with(body, &json!({ "stream": true }));
    let text = program.post(path, &body).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&text);
    assert!(is_done, "{text}");
    documents
}

/// The ids of a stream, joined.
fn joined(documents: &[Value]) -> Vec<Value> {
    let lists = documents.iter().filter_map(|document| document["choices"][0]["token_ids"].as_array());
    lists.flatten().cloned().collect()
}

#[tokio::test]
async fn ids_of_prompt_and_answer_are_those_of_the_tokenizer_whole_and_streamed() {
    let program = Program::start(&[]).await;
    let wish = json!({ "return_token_ids": true });
    let answer = ask(&program, COMPLETIONS, &completion(&wish)).await;
    let choice = &answer["choices"][0];
    let tokenized =
        ask(&program, "/tokenize", &json!({ "content": "Once upon a time", "add_special": true })).await;
    assert_eq!(choice["prompt_token_ids"], tokenized["tokens"]);
    let ids = choice["token_ids"].as_array().unwrap();
    assert_eq!(ids.len(), 6);
    let text = ask(&program, "/detokenize", &json!({ "tokens": ids })).await;
    assert_eq!(text["content"].as_str().unwrap().trim_start(), choice["text"].as_str().unwrap().trim_start());
    let documents = stream(&program, COMPLETIONS, completion(&wish)).await;
    assert_eq!(&joined(&documents), ids);
    let prompts: Vec<_> = documents
        .iter()
        .map(|document| &document["choices"][0]["prompt_token_ids"])
        .filter(|ids| !ids.is_null())
        .collect();
    assert_eq!(prompts, [&choice["prompt_token_ids"]], "once");

    let answer = ask(&program, CHAT, &chat(&wish)).await;
    assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 6);
    assert_eq!(answer["prompt_token_ids"].as_array().unwrap().len(), answer["usage"]["prompt_tokens"]);
    let documents = stream(&program, CHAT, chat(&wish)).await;
    assert_eq!(Value::from(joined(&documents)), answer["choices"][0]["token_ids"]);
    assert_eq!(documents.iter().filter(|document| document["prompt_token_ids"].is_array()).count(), 1);
    let plain = ask(&program, COMPLETIONS, &completion(&json!({}))).await;
    assert!(
        plain["choices"][0].get("token_ids").is_none()
            && plain["choices"][0].get("prompt_token_ids").is_none()
    );
}

#[tokio::test]
async fn log_probabilities_of_the_prompt_are_those_of_the_echoed_prompt() {
    let program = Program::start(&[]).await;
    let wish = json!({ "prompt_logprobs": 3, "logprobs": 1, "echo": true, "return_token_ids": true });
    let answer = ask(&program, COMPLETIONS, &completion(&wish)).await;
    let choice = &answer["choices"][0];
    let (prompt, ids) =
        (choice["prompt_logprobs"].as_array().unwrap(), choice["prompt_token_ids"].as_array().unwrap());
    assert_eq!((prompt.len(), &prompt[0]), (ids.len(), &Value::Null));
    for (position, (entry, id)) in prompt.iter().zip(ids).enumerate().skip(1) {
        let entry = entry.as_object().unwrap();
        assert!((3..=4).contains(&entry.len()), "{entry:?}");
        let own = &entry[&id.to_string()];
        assert_eq!(own["logprob"], choice["logprobs"]["token_logprobs"][position]);
        let better =
            entry.values().filter(|other| other["logprob"].as_f64() > own["logprob"].as_f64()).count();
        let rank = usize::try_from(own["rank"].as_u64().unwrap()).unwrap();
        assert!(if entry.len() == 3 { rank == better + 1 } else { rank > 3 }, "{entry:?}");
    }
    let tops = choice["logprobs"]["top_logprobs"].as_array().unwrap();
    assert!(
        tops[1..].iter().all(|top| top.as_object().unwrap().len() <= 2),
        "one alternative, and the token"
    );
    // Without logprobs, the answer has none, and the prompt's are the same.
    let alone = ask(&program, COMPLETIONS, &completion(&json!({ "prompt_logprobs": 3 }))).await;
    assert_eq!(
        (&alone["choices"][0]["prompt_logprobs"], &alone["choices"][0]["logprobs"]),
        (&choice["prompt_logprobs"], &Value::Null)
    );
    let answer = ask(&program, CHAT, &chat(&json!({ "prompt_logprobs": 0 }))).await;
    let prompt = answer["prompt_logprobs"].as_array().unwrap();
    assert!(prompt[1..].iter().all(|entry| entry.as_object().unwrap().len() == 1));
    assert_eq!(prompt.len(), answer["usage"]["prompt_tokens"]);
    let refused = program.ask(CHAT, &chat(&json!({ "prompt_logprobs": 1, "stream": true }))).await;
    assert_refused(&refused, "invalid_value", "prompt_logprobs");
}

#[tokio::test]
async fn tokens_of_log_probabilities_are_named_by_their_ids_on_request() {
    let program = Program::start(&[]).await;
    let wish = json!({ "logprobs": 1, "return_tokens_as_token_ids": true, "return_token_ids": true });
    let answer = ask(&program, COMPLETIONS, &completion(&wish)).await;
    let choice = &answer["choices"][0];
    for (name, id) in
        choice["logprobs"]["tokens"].as_array().unwrap().iter().zip(choice["token_ids"].as_array().unwrap())
    {
        assert_eq!(name, &format!("token_id:{id}"));
    }
    let wish = json!({ "logprobs": true, "top_logprobs": 2, "return_tokens_as_token_ids": true });
    let answer = ask(&program, CHAT, &chat(&wish)).await;
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    for token in [&first["token"], &first["top_logprobs"][1]["token"]] {
        assert!(token.as_str().unwrap().starts_with("token_id:"), "{first}");
    }
}

#[tokio::test]
async fn min_tokens_keep_an_answer_from_ending_before() {
    let program = Program::start(&[]).await;
    let messages = json!([{ "role": "user", "content": "Translate to Hindi: Good morning, friend." }]);
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 40 });
    let short = ask(&program, CHAT, &body).await;
    assert_eq!(short["choices"][0]["finish_reason"], "stop");
    let tokens = short["usage"]["completion_tokens"].as_u64().unwrap();
    let more = ask(&program, CHAT, &with(body.clone(), &json!({ "min_tokens": tokens + 5 }))).await;
    assert!(
        more["usage"]["completion_tokens"].as_u64().unwrap() > tokens + 5
            || more["choices"][0]["finish_reason"] == "length",
        "{more}"
    );
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text(&more).starts_with(&text(&short)), "only the end differs");
    let several =
        ask(&program, CHAT, &with(body.clone(), &json!({ "min_tokens": tokens + 5, "n": 2 }))).await;
    assert_eq!(text(&several), text(&more), "computed together");
    for (fields, param) in [
        (json!({ "min_tokens": 41 }), "min_tokens"),
        (json!({ "min_tokens": 2, "regex": "a+" }), "min_tokens"),
        (json!({ "min_tokens": -1 }), "min_tokens"),
    ] {
        assert_refused(&program.ask(CHAT, &with(body.clone(), &fields)).await, "invalid_value", param);
    }
}

#[tokio::test]
async fn every_event_has_the_usage_so_far_on_request() {
    let program = Program::start(&[]).await;
    let options = json!({ "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
    for (path, body) in [(COMPLETIONS, completion(&options)), (CHAT, chat(&options))] {
        let documents = stream(&program, path, body).await;
        let counts: Vec<u64> = documents
            .iter()
            .map(|document| document["usage"]["completion_tokens"].as_u64().unwrap())
            .collect();
        assert!(counts.is_sorted() && counts.len() > 4 && *counts.last().unwrap() == 6, "{counts:?}");
        let prompts = documents.iter().map(|document| &document["usage"]["prompt_tokens"]);
        assert!(
            prompts
                .clone()
                .all(|prompt| prompt.as_u64() > Some(2) && prompt == prompts.clone().next().unwrap())
        );
    }
}

#[tokio::test]
async fn a_gap_is_filled_by_models_that_have_tokens_for_it_and_refused_by_others() {
    let server = Server::start(ServerOptions::default());
    let body = json!({ "prompt": "def f():", "suffix": "return a" });
    assert_refused(&server.ask(COMPLETIONS, &body).await, "invalid_value", "suffix");
    assert_eq!(server.ask(COMPLETIONS, &with(body, &json!({ "suffix": "" }))).await.0, 200);
}
