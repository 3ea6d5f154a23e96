//! Embeddings, and the order of documents by them.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    program::Program,
    requests::{assert_refused, with},
};

const EMBEDDINGS: &str = "/v1/embeddings";

async fn ask(program: &Program, path: &str, body: &Value) -> Value {
    let (status, answer) = program.ask(path, body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap_or_else(|| panic!("{value}"));
    numbers.iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The embeddings of `input`, not normalized.
async fn raw(program: &Program, input: Value, pooling: &str) -> Vec<Vec<f64>> {
    let body = json!({ "input": input, "pooling": pooling, "normalize": false });
    let answer = ask(program, EMBEDDINGS, &body).await;
    answer["data"].as_array().unwrap().iter().map(|item| numbers(&item["embedding"])).collect()
}

fn assert_close(one: &[f64], other: &[f64]) {
    assert_eq!(one.len(), other.len());
    let scale = one.iter().fold(0.0_f64, |most, number| most.max(number.abs()));
    for (a, b) in one.iter().zip(other) {
        assert!((a - b).abs() <= scale * 1e-4, "{a} and {b}");
    }
}

#[tokio::test]
async fn the_mean_is_that_of_the_last_hidden_states_of_all_beginnings() {
    let program = Program::start(&[]).await;
    let ids = [1_u32, 120, 57, 900, 33, 41];
    let beginnings: Vec<&[u32]> = (1..=ids.len()).map(|length| &ids[..length]).collect();
    let last = raw(&program, json!(beginnings), "last").await;
    assert!(last.len() == ids.len() && last[0].len() > 16);
    let mean: Vec<f64> = (0..last[0].len())
        .map(|column| last.iter().map(|row| row[column]).sum::<f64>() / ids.len() as f64)
        .collect();
    assert_close(&raw(&program, json!([ids]), "mean").await[0], &mean);
    // As a text, with the tokens that the tokenizer adds; and between answers.
    let text = ask(&program, "/v1/completions", &json!({ "prompt": ids, "max_tokens": 4 })).await;
    assert_eq!(text["usage"]["completion_tokens"], 4);
    assert_close(&raw(&program, json!([ids]), "last").await[0], &last[ids.len() - 1]);
}

#[tokio::test]
async fn embeddings_have_length_1_and_the_requested_form() {
    let program = Program::start(&[]).await;
    let texts = json!(["Good morning, friend.", "Please speak slowly."]);
    let answer = ask(&program, EMBEDDINGS, &json!({ "model": "demo", "input": texts })).await;
    let tokens = ask(&program, "/tokenize", &json!({ "prompt": texts[0] })).await["count"].as_u64().unwrap()
        + ask(&program, "/tokenize", &json!({ "prompt": texts[1] })).await["count"].as_u64().unwrap();
    assert_eq!(answer["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
    assert_eq!(
        (&answer["object"], &answer["data"][1]["index"], &answer["data"][1]["object"]),
        (&json!("list"), &json!(1), &json!("embedding"))
    );
    let of_first = numbers(&answer["data"][0]["embedding"]);
    let length = |numbers: &[f64]| numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
    assert!((length(&of_first) - 1.0).abs() < 1e-5);
    let short = ask(&program, EMBEDDINGS, &json!({ "input": texts[0], "dimensions": 8 })).await;
    let short = numbers(&short["data"][0]["embedding"]);
    assert!(short.len() == 8 && (length(&short) - 1.0).abs() < 1e-5);
    assert!((short[0] / short[1] - of_first[0] / of_first[1]).abs() < 1e-3);
    let encoded = ask(&program, EMBEDDINGS, &json!({ "input": texts[0], "encoding_format": "base64" })).await;
    let bytes = STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f64> =
        bytes.chunks(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect();
    assert_close(&decoded, &of_first);
    let ollama = ask(&program, "/api/embed", &json!({ "model": "demo", "input": texts })).await;
    assert_eq!(
        (ollama["embeddings"].as_array().unwrap().len(), &ollama["prompt_eval_count"]),
        (2, &json!(tokens))
    );
    assert_close(&numbers(&ollama["embeddings"][0]), &of_first);
    let older = ask(&program, "/api/embeddings", &json!({ "model": "demo", "prompt": texts[0] })).await;
    assert_eq!(numbers(&older["embedding"]).len(), of_first.len());
}

#[tokio::test]
async fn documents_are_ordered_by_their_similarity_to_the_query() {
    let program = Program::start(&[]).await;
    let documents = json!(["Where is the station?", "Good morning, friend.", "Please speak slowly."]);
    let body = json!({ "query": "Good morning, friend.", "documents": documents, "return_documents": true });
    let answer = ask(&program, "/v1/rerank", &body).await;
    let results = answer["results"].as_array().unwrap();
    let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
    assert!(
        (scores[0] - 1.0).abs() < 1e-4 && scores.is_sorted_by(|a, b| a >= b) && scores[1] < 0.999,
        "{scores:?}"
    );
    assert_eq!((&results[0]["index"], &results[0]["document"]["text"]), (&json!(1), &documents[1]));
    let best =
        ask(&program, "/v1/rerank", &with(body, &json!({ "top_n": 1, "return_documents": false }))).await;
    assert_eq!(best["results"].as_array().unwrap().len(), 1);
    assert!(best["results"][0].get("document").is_none());
}

#[tokio::test]
async fn texts_are_ordered_as_text_embeddings_inference_orders_them() {
    let program = Program::start(&[]).await;
    let texts = json!(["Where is the station?", "Good morning, friend."]);
    let body =
        json!({ "query": "Good morning, friend.", "texts": texts, "return_text": true, "raw_scores": false });
    let answer = ask(&program, "/rerank", &body).await;
    assert_eq!(answer.as_array().unwrap().len(), 2, "{answer}");
    assert_eq!((&answer[0]["index"], &answer[0]["text"]), (&json!(1), &texts[1]));
    assert!(answer[0]["score"].as_f64() > answer[1]["score"].as_f64(), "{answer}");
    let plain = ask(&program, "/rerank", &with(body, &json!({ "return_text": false, "top_n": 9 }))).await;
    assert!(plain[1].get("text").is_none(), "{plain}");
    for (wrong, code) in [
        (json!({ "query": "a" }), "missing_field"),
        (json!({ "query": "a", "texts": ["b"], "documents": ["b"] }), "invalid_value"),
        (json!({ "query": "a", "texts": [] }), "invalid_value"),
    ] {
        let (status, answer) = program.ask("/rerank", &wrong).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{answer}");
    }
}

#[tokio::test]
async fn a_long_list_is_computed_in_turn_and_a_queue_with_one_place_is_enough() {
    let program = Program::start(&["--queue", "1"]).await;
    let texts: Vec<String> = (0..40).map(|number| format!("Text {number}")).collect();
    let answer = ask(&program, EMBEDDINGS, &json!({ "input": texts, "encoding_format": "base64" })).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 40);
}

#[tokio::test]
async fn wrong_texts_are_refused_by_name_and_models_without_hidden_states_too() {
    let program = Program::start(&[]).await;
    for (body, code, param) in [
        (json!({}), "missing_field", "input"),
        (json!({ "input": [] }), "empty_prompt", "input"),
        (json!({ "input": "a", "dimensions": 0 }), "invalid_value", "dimensions"),
        (json!({ "input": "a", "encoding_format": "int8" }), "invalid_value", "encoding_format"),
        (json!({ "input": [[1], [70_000]] }), "invalid_value", "input[1][0]"),
        (json!({ "input": "a", "truncate_prompt_tokens": 4 }), "unsupported_field", "truncate_prompt_tokens"),
    ] {
        assert_refused(&program.ask(EMBEDDINGS, &body).await, code, param);
    }
    let long = json!({ "input": vec![1; 5_000] });
    let (status, answer) = program.ask(EMBEDDINGS, &long).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let without = Program::start(&["--set", "engine.own_operators=false"]).await;
    let (status, answer) = without.ask(EMBEDDINGS, &json!({ "input": "a" })).await;
    assert_eq!((status, &answer["error"]["code"]), (501, &json!("embeddings_unsupported")), "{answer}");
    assert_eq!(without.ask("/v1/completions", &json!({ "prompt": "a", "max_tokens": 2 })).await.0, 200);
}
