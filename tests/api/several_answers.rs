//! Several answers to one request: choices of a prompt, and lists of prompts.

use serde_json::{Value, json};

use crate::support::{
    program::Program,
    requests::with,
    server::{Server, ServerOptions, events},
};

const COMPLETIONS: &str = "/v1/completions";

fn request(fields: &Value) -> Value {
    let request = json!({
        "prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.2, "seed": 40, "ignore_eos": true,
    });
    with(request, fields)
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}"));
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

async fn ask(program: &Program, request: &Value) -> Value {
    let (status, answer) = program.ask(COMPLETIONS, request).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The texts of a stream by index, and the index of each event with text.
async fn streamed(program: &Program, request: &Value, choices: usize) -> (Vec<String>, Vec<usize>) {
    let request = with(request.clone(), &json!({ "stream": true }));
    let stream = program.post(COMPLETIONS, &request).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&stream);
    assert!(is_done, "{stream}");
    let (mut texts, mut order) = (vec![String::new(); choices], Vec::new());
    for document in &documents {
        let choice = &document["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        let text = choice["text"].as_str().unwrap();
        texts[index] += text;
        if !text.is_empty() {
            order.push(index);
        }
    }
    (texts, order)
}

#[tokio::test]
async fn the_choices_of_a_stream_alternate_and_have_the_texts_of_the_whole_answer() {
    let program = Program::start(&[]).await;
    let request = request(&json!({ "n": 4 }));
    let whole = texts(&ask(&program, &request).await);
    let (streamed, order) = streamed(&program, &request, 4).await;
    assert_eq!(streamed, whole);
    let changes = order.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(changes > 12, "{order:?}");
}

#[tokio::test]
async fn every_prompt_of_a_list_has_the_choices_that_it_has_alone() {
    let program = Program::start(&[]).await;
    let prompts = json!(["Once upon a time", "Once upon a hill, far away", "Please"]);
    let (mut expected, mut tokens) = (Vec::new(), 0);
    for prompt in prompts.as_array().unwrap() {
        let alone = ask(&program, &request(&json!({ "prompt": prompt, "n": 2 }))).await;
        expected.extend(texts(&alone));
        tokens += alone["usage"]["prompt_tokens"].as_u64().unwrap();
    }
    let list = request(&json!({ "prompt": prompts, "n": 2 }));
    let answer = ask(&program, &list).await;
    assert_eq!(texts(&answer), expected);
    assert_eq!(answer["usage"]["prompt_tokens"], tokens, "each prompt is counted once");
    assert_eq!(answer["usage"]["completion_tokens"], 6 * 24);
    assert_eq!(streamed(&program, &list, 6).await.0, expected);
    // As ids, and echoed with the log-probabilities of each prompt.
    let ids = request(&json!({ "prompt": [[20, 21, 22], [23, 24]], "echo": true, "logprobs": 1 }));
    let scored = ask(&program, &ids).await;
    for (index, prompt) in [json!([20, 21, 22]), json!([23, 24])].into_iter().enumerate() {
        let alone = ask(&program, &with(ids.clone(), &json!({ "prompt": prompt }))).await;
        assert_eq!(scored["choices"][index]["text"], alone["choices"][0]["text"]);
        assert_eq!(scored["choices"][index]["logprobs"], alone["choices"][0]["logprobs"]);
    }
}

#[tokio::test]
async fn answers_do_not_depend_on_how_many_sequences_are_computed_together() {
    let request = request(&json!({ "n": 5, "logprobs": 2 }));
    let mut answers = Vec::new();
    for flags in [&[][..], &["--set", "engine.max_sequences=2"], &["--set", "engine.max_sequences=1"]] {
        let answer = ask(&Program::start(flags).await, &request).await;
        answers.push(answer["choices"].clone());
    }
    assert!(answers[0] == answers[1] && answers[1] == answers[2], "{answers:#?}");
}

#[tokio::test]
async fn all_choices_continue_when_their_worker_is_lost() {
    let request = request(&json!({ "n": 4 }));
    let undisturbed = texts(&ask(&Program::start(&[]).await, &request).await);
    for plan in ["crash@decode:9", "crash@prefill:1", "poison@decode:3"] {
        let program = Program::start(&["--faults", plan]).await;
        let answer = ask(&program, &request).await;
        assert_eq!(texts(&answer), undisturbed, "{plan}");
        assert_eq!(answer["timings"]["resumed"], 1, "{plan}");
    }
}

#[tokio::test]
async fn a_stop_string_ends_its_choice_and_no_other() {
    let program = Program::start(&[]).await;
    let whole = texts(&ask(&program, &request(&json!({ "n": 3 }))).await);
    // Two characters that only the second choice has.
    let pairs: Vec<String> =
        whole[1].chars().collect::<Vec<_>>().windows(2).map(|pair| pair.iter().collect()).collect();
    let stop = pairs.iter().find(|pair| !whole[0].contains(*pair) && !whole[2].contains(*pair)).unwrap();
    let answer = ask(&program, &request(&json!({ "n": 3, "stop": stop }))).await;
    let stopped = texts(&answer);
    assert_eq!((&stopped[0], &stopped[2]), (&whole[0], &whole[2]));
    assert_eq!(stopped[1], whole[1].split(stop.as_str()).next().unwrap());
    let reasons = answer["choices"].as_array().unwrap().iter().map(|choice| choice["finish_reason"].clone());
    assert_eq!(reasons.collect::<Vec<_>>(), ["length", "stop", "length"]);
}

#[tokio::test]
async fn best_of_sends_the_answers_with_the_greatest_mean_log_probability() {
    let program = Program::start(&[]).await;
    let all = ask(&program, &request(&json!({ "n": 6, "logprobs": 0 }))).await;
    let mean = |choice: &Value| {
        let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        scores.iter().map(|score| score.as_f64().unwrap()).sum::<f64>() / scores.len() as f64
    };
    let mut ranked = all["choices"].as_array().unwrap().clone();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = ask(&program, &request(&json!({ "n": 2, "best_of": 6 }))).await;
    let expected: Vec<_> =
        ranked[..2].iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts(&best), expected);
    assert_eq!(best["choices"][0]["logprobs"], Value::Null);
    assert_eq!(best["usage"], all["usage"], "all are counted");
}

#[tokio::test]
async fn too_many_answers_are_refused_by_name() {
    let server = Server::start(ServerOptions::default());
    for (fields, param, words) in [
        (json!({ "prompt": vec!["a"; 65] }), "prompt", "65 items, at most 64"),
        (json!({ "prompt": vec!["a"; 33], "n": 2 }), "n", "66 answers, at most 64"),
        (json!({ "n": 2, "best_of": 3, "stream": true }), "stream", "best_of"),
        (json!({ "n": 3, "best_of": 2 }), "best_of", "n is 3"),
        (json!({ "prompt": ["a", ""] }), "prompt[1]", "empty"),
        (json!({ "prompt": ["a", [7, 70_000_000]] }), "prompt[1][1]", "token ids"),
    ] {
        let (status, answer) = server.ask(COMPLETIONS, &request(&fields)).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
    }
}
