//! Models that reason before they answer: how the reasoning is asked for, limited, told apart and sent back.

use serde_json::{Value, json};

use crate::support::{
    requests::with,
    server::{Server, ServerOptions, events},
};

const CHAT: &str = "/v1/chat/completions";

/// A template that writes its variables, and the reasoning of earlier answers.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
    {% endfor %}{% if reasoning_effort %}[{{ reasoning_effort }}]{% endif %}{% if add_generation_prompt %}<assistant>\
    {% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}";

/// A template whose prompt begins the reasoning.
const OPEN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant><think>\n";

const ANSWER: &str = "<think>\nIt may rain.\n</think>\n\nTake an umbrella.";

fn server(template: &'static str, answer: &'static str) -> Server {
    Server::start(ServerOptions {
        template: Some(template),
        answer: Some(answer),
        ..ServerOptions::default()
    })
}

fn request(fields: &Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Will it rain?" }]);
    with(json!({ "messages": messages, "max_tokens": 100 }), fields)
}

/// Reasoning and content of a stream.
fn assembled(documents: &[Value]) -> (String, String) {
    let (mut reasoning, mut content) = (String::new(), String::new());
    for delta in documents.iter().map(|document| &document["choices"][0]["delta"]) {
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        assert_eq!(delta["reasoning_content"], delta["reasoning"]);
        content += delta["content"].as_str().unwrap_or_default();
    }
    (reasoning, content)
}

async fn rendered(server: &Server, fields: &Value) -> String {
    let (status, answer) = server.ask("/apply-template", &with(json!({ "messages": [] }), fields)).await;
    assert_eq!(status, 200, "{answer}");
    answer["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn reasoning_is_apart_from_the_content_in_whole_and_streamed_answers() {
    for (template, answer) in [(TEMPLATE, ANSWER), (OPEN, "It may rain.\n</think>\n\nTake an umbrella.")] {
        let server = server(template, answer);
        let (status, whole) = server.ask(CHAT, &request(&json!({}))).await;
        assert_eq!(status, 200, "{whole}");
        let message = &whole["choices"][0]["message"];
        assert_eq!(message["reasoning_content"], "It may rain.");
        assert_eq!(
            (&message["reasoning"], &message["content"]),
            (&json!("It may rain."), &json!("Take an umbrella."))
        );
        assert!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 2);
        let (documents, is_done) = events(&server.stream(CHAT, &request(&json!({ "stream": true }))).await);
        let (reasoning, content) = assembled(&documents);
        assert!(is_done && reasoning == "It may rain." && content == "Take an umbrella.");
    }
}

#[tokio::test]
async fn reasoning_can_be_left_out_or_left_in_the_content() {
    let server = server(TEMPLATE, ANSWER);
    for hidden in [json!({ "include_reasoning": false }), json!({ "reasoning": { "exclude": true } })] {
        let (_, answer) = server.ask(CHAT, &request(&hidden)).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message, &json!({ "role": "assistant", "content": "Take an umbrella.", "refusal": null }));
    }
    let (_, answer) = server.ask(CHAT, &request(&json!({ "reasoning_format": "none" }))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], ANSWER);
}

#[tokio::test]
async fn the_reasoning_ends_when_its_budget_is_used_up_and_the_answer_follows() {
    let server = server(OPEN, "one two three four five six seven eight nine ten eleven twelve thirteen");
    for stream in [false, true] {
        let body = request(&json!({ "thinking_budget": 4, "max_tokens": 30, "stream": stream }));
        let text = server.post(CHAT, &body).send().await.unwrap().text().await.unwrap();
        let (reasoning, content) = if stream {
            assembled(&events(&text).0)
        } else {
            let answer: Value = serde_json::from_str(&text).unwrap();
            // The demonstration model's tokenizer spells the end of the reasoning in several tokens.
            let usage = &answer["usage"];
            assert!(
                usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() <= 12,
                "{usage}"
            );
            assert!(usage["completion_tokens"].as_u64().unwrap() <= 30, "{usage}");
            let message = &answer["choices"][0]["message"];
            let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
            (text("reasoning_content"), text("content"))
        };
        assert!(!reasoning.is_empty() && reasoning.len() < 40, "{reasoning}");
        assert!(content.contains("one"), "the scripted model begins again: {content}");
    }
    server.is_idle().await;
}

#[tokio::test]
async fn every_way_to_ask_for_reasoning_reaches_the_template() {
    let server = server(TEMPLATE, ANSWER);
    let messages = json!([{ "role": "user", "content": "a" }]);
    let of = |fields: Value| with(json!({ "messages": messages }), &fields);
    for off in [
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
        json!({ "enable_thinking": false }),
        json!({ "reasoning_effort": "none" }),
        json!({ "thinking": { "type": "disabled" } }),
    ] {
        assert_eq!(rendered(&server, &of(off)).await, "<user>a<assistant><think></think>");
    }
    assert_eq!(
        rendered(&server, &of(json!({ "reasoning_effort": "high" }))).await,
        "<user>a[high]<assistant>"
    );
    assert_eq!(rendered(&server, &of(json!({ "add_generation_prompt": false }))).await, "<user>a");
}

#[tokio::test]
async fn the_reasoning_of_earlier_answers_is_accepted_under_both_names() {
    let server = server(TEMPLATE, ANSWER);
    for name in ["reasoning_content", "reasoning"] {
        let messages = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b", name: "c" },
            { "role": "user", "content": "d" }]);
        let text = rendered(&server, &json!({ "messages": messages })).await;
        assert_eq!(text, "<user>a<assistant><think>c</think>b<user>d<assistant>");
    }
}

#[tokio::test]
async fn an_answer_can_continue_the_last_message() {
    let server = server(TEMPLATE, "rain.");
    let messages = |last: Value| json!([{ "role": "user", "content": "a" }, last]);
    let assistant = json!({ "role": "assistant", "content": "It may" });
    let body = json!({ "messages": messages(assistant.clone()), "continue_final_message": true });
    assert_eq!(rendered(&server, &body).await, "<user>a<assistant>It may");
    for mark in ["prefix", "partial"] {
        let body = json!({ "messages": messages(with(assistant.clone(), &json!({ mark: true }))) });
        assert_eq!(rendered(&server, &body).await, "<user>a<assistant>It may");
    }
    let both = with(body, &json!({ "add_generation_prompt": true }));
    let (status, answer) = server.ask(CHAT, &both).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("add_generation_prompt")));
}

#[tokio::test]
async fn a_schema_applies_to_the_answer_after_the_reasoning() {
    // The scripted model does not follow constraints: this checks how its text is separated.
    let server = server(TEMPLATE, "<think>\n{}?\n</think>\n\n{\"a\": 1}");
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "object" } } });
    let (status, answer) = server.ask(CHAT, &request(&json!({ "response_format": format }))).await;
    assert_eq!(status, 200, "{answer}");
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("{}?"), &json!("{\"a\": 1}")));
}
