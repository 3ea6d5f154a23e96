//! Which tokens an answer may have: `logit_bias` by texts, `bad_words` and `allowed_token_ids`.

use serde_json::{Value, json};

use crate::support::{
    program::Program,
    server::{Server, ServerOptions},
};

const CHAT: &str = "/v1/chat/completions";

const PROMPT: &str = "Translate to Hindi: Good morning, friend.";

/// The text and the token ids of the demonstration model's most probable answer.
async fn answer(program: &Program, fields: Value) -> (String, Vec<u64>) {
    let messages = json!([{ "role": "user", "content": PROMPT }]);
    let mut body =
        json!({ "messages": messages, "max_tokens": 12, "temperature": 0, "return_token_ids": true });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (status, answer) = program.ask(CHAT, &body).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let ids = choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    (choice["message"]["content"].as_str().unwrap().to_owned(), ids)
}

#[tokio::test]
async fn an_answer_has_no_bad_word_and_only_allowed_tokens() {
    let program = Program::start(&[]).await;
    let (text, ids) = answer(&program, json!({})).await;
    let word = text.split_whitespace().next().unwrap();
    let (without, _) = answer(&program, json!({ "bad_words": [word] })).await;
    assert!(!without.contains(word) && !without.is_empty(), "{without:?} has {word:?}");
    let (unchanged, _) = answer(&program, json!({ "bad_words": ["Zebra"] })).await;
    assert_eq!(unchanged, text);

    let (first, last) = (ids[0], ids[ids.len() - 1]);
    let (_, only) = answer(&program, json!({ "allowed_token_ids": [last, first, first] })).await;
    assert_eq!(only.len(), 12, "its end token is not allowed");
    assert!(only.iter().all(|id| [first, last].contains(id)), "{only:?}");
}

#[tokio::test]
async fn a_bias_may_be_for_the_tokens_of_a_text_and_may_forbid_them() {
    let program = Program::start(&[]).await;
    let (text, ids) = answer(&program, json!({})).await;
    for bias in [json!(-100), json!(false)] {
        for biases in [json!([[text, bias]]), json!({ (text.as_str()): bias })] {
            let (_, others) = answer(&program, json!({ "logit_bias": biases })).await;
            assert!(!others.is_empty() && others.iter().all(|id| !ids.contains(id)), "{others:?}: {biases}");
        }
        let (_, others) = answer(&program, json!({ "logit_bias": { (ids[0].to_string()): bias } })).await;
        assert!(!others.contains(&ids[0]), "{others:?}");
    }
}

#[tokio::test]
async fn texts_with_a_bias_may_not_have_more_tokens_than_ids_may_have_biases() {
    let server = Server::start(ServerOptions::default());
    let texts: Vec<Value> = (0..200).map(|n| json!([format!("{n} q!w?e.r,t;y:u-i_o=p+Z/X(C"), 1])).collect();
    let messages = json!([{ "role": "user", "content": "Please" }]);
    let (status, answer) = server.ask(CHAT, &json!({ "messages": messages, "logit_bias": texts })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("logit_bias")), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("more than 1024 tokens"), "{message}");
}
