//! llama-server's own routes.

use serde_json::{Value, json};

use crate::support::server::{ANSWER, ANSWER_IDS, CONTEXT_LENGTH, MODEL, Server, ServerOptions, events};

const COMPLETION: &str = "/completion";

#[tokio::test]
async fn a_completion_has_llama_servers_fields() {
    let server = Server::start(ServerOptions::default());
    let body = json!({
        "prompt": "Please", "n_predict": 32, "seed": 42, "temperature": 0.5, "repeat_penalty": 1.25, "typ_p": 0.75,
        "cache_prompt": false, "id_slot": -1, "samplers": null, "return_tokens": true, "t_max_predict_ms": 5000,
    });
    let (status, answer) = server.ask(COMPLETION, &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["content"], ANSWER);
    // The answer does not include the end token.
    assert_eq!(answer["tokens"], json!(ANSWER_IDS[..13]), "{answer}");
    for (field, expected) in [
        ("stop", json!(true)),
        ("stop_type", json!("eos")),
        ("stopping_word", json!("")),
        ("truncated", json!(false)),
        ("has_new_line", json!(false)),
        ("model", json!(MODEL)),
        ("prompt", json!("Please")),
        ("tokens_predicted", json!(14)),
        ("index", json!(0)),
    ] {
        assert_eq!(answer[field], expected, "{field}");
    }
    let settings = &answer["generation_settings"];
    assert_eq!(
        [
            &settings["n_predict"],
            &settings["seed"],
            &settings["temperature"],
            &settings["repeat_penalty"],
            &settings["typical_p"]
        ],
        [&json!(32), &json!(42), &json!(0.5), &json!(1.25), &json!(0.75)]
    );
    let sampling = server.last_job().sampling;
    assert_eq!((sampling.repetition_penalty, sampling.typical_p), (1.25, 0.75));
    assert!(answer["timings"]["predicted_n"].is_u64() && answer.get("completion_probabilities").is_none());
    let short = server.ask(COMPLETION, &json!({ "prompt": "Please", "n_predict": 3 })).await.1;
    assert_eq!((&short["stop_type"], &short["tokens"]), (&json!("limit"), &json!([])));
    let stop = ANSWER.split(' ').nth(1).unwrap();
    let stopped = server.ask(COMPLETION, &json!({ "prompt": "Please", "stop": [stop] })).await.1;
    assert_eq!((&stopped["stop_type"], &stopped["stopping_word"]), (&json!("word"), &json!(stop)));
    let read = server.ask(COMPLETION, &json!({ "prompt": "Please", "n_predict": 0 })).await.1;
    assert_eq!((&read["content"], &read["stop"]), (&json!(""), &json!(true)));
}

#[tokio::test]
async fn a_streamed_completion_ends_with_the_event_that_says_so() {
    let server = Server::start(ServerOptions::default());
    let stream = server.stream(COMPLETION, &json!({ "prompt": "Please", "stream": true })).await;
    let (events, is_done) = events(&stream);
    assert!(!is_done, "llama-server has no [DONE] here");
    let (last, pieces) = events.split_last().unwrap();
    assert_eq!(
        (&last["stop"], &last["content"], &last["stop_type"]),
        (&json!(true), &json!(""), &json!("eos"))
    );
    assert!(last["timings"].is_object() && last["generation_settings"]["stream"] == true);
    let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
    assert_eq!(text, ANSWER);
    let tokens: Vec<Value> =
        pieces.iter().flat_map(|piece| piece["tokens"].as_array().unwrap().clone()).collect();
    assert_eq!(json!(tokens), json!(ANSWER_IDS[..13]));
    assert!(pieces.iter().all(|piece| piece["stop"] == false && piece.get("timings").is_none()));
}

#[tokio::test]
async fn several_prompts_get_an_array_of_answers() {
    let server = Server::start(ServerOptions::default());
    let ids = json!([40, 41, 42]);
    for prompt in [json!(["Please", "Please"]), json!([ids, ids]), json!([ids, "Please"])] {
        let (status, answer) = server.ask(COMPLETION, &json!({ "prompt": prompt })).await;
        assert_eq!((status, answer.as_array().unwrap().len()), (200, 2));
        assert_eq!((&answer[0]["content"], &answer[1]["index"]), (&answer[1]["content"], &json!(1)));
    }
    assert_eq!(server.ask(COMPLETION, &json!({ "prompt": ids })).await.1["content"], ANSWER);
    let mixed = json!({ "prompt": [40, 41, "Please", 42, "speak"], "n_predict": 2 });
    assert_eq!(server.ask(COMPLETION, &mixed).await.0, 200);
    let read = server.last_job().prompt;
    assert!(read.starts_with(&[40, 41]) && read.contains(&42) && read.len() > 5, "{read:?}");
    let settings = json!({ "prompt": "Please", "n_predict": 2, "logit_bias": [[5, -3], [6, false]], "ignore_eos": true });
    let settings = server.ask(COMPLETION, &settings).await.1["generation_settings"]["logit_bias"].clone();
    let biases: Vec<_> =
        settings.as_array().unwrap().iter().map(|one| (&one["token"], &one["bias"])).collect();
    assert_eq!(biases[..2], [(&json!(5), &json!(-3.0)), (&json!(6), &Value::Null)]);
    assert!(biases.len() > 2 && biases[2..].iter().all(|(_, bias)| bias.is_null()), "end tokens: {settings}");
    let two = server.ask(COMPLETION, &json!({ "prompt": "Please", "n_cmpl": 2 })).await.1;
    assert_eq!((&two[0]["prompt"], &two[1]["prompt"]), (&json!("Please"), &json!("Please")));
}

#[tokio::test]
async fn a_completion_that_cannot_be_is_refused_with_the_field() {
    let server = Server::start(ServerOptions::default());
    for (field, value, code) in [
        ("n_predict", json!("a"), "invalid_type"),
        ("n_probs", json!(21), "invalid_value"),
        ("post_sampling_probs", json!(1), "invalid_type"),
        ("response_fields", json!([""]), "invalid_value"),
        ("prompt", json!({ "content": "a", "prompt_string": "b" }), "invalid_value"),
        ("prompt", json!({}), "missing_field"),
        ("logit_bias", json!([[1, 2, 3]]), "invalid_value"),
        ("prompt", json!([]), "empty_prompt"),
        ("n_cmpl", json!(0), "invalid_value"),
        ("t_max_predict_ms", json!(1_u64 << 40), "invalid_value"),
    ] {
        let mut body = json!({ "prompt": "Please" });
        body[field] = value;
        let (status, answer) = server.ask(COMPLETION, &body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{field}: {answer}");
        assert!(answer["error"]["param"].as_str().unwrap().starts_with(field), "{field}: {answer}");
    }
    let long = "hello ".repeat(2_000);
    let (status, answer) = server.ask(COMPLETION, &json!({ "prompt": long })).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let (status, answer) = server.ask("/infill", &json!({ "input_prefix": "a", "input_suffix": "b" })).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("filling in the middle"));
    for extra in [json!({}), json!({ "filename": "ok" }), json!({ "filename": 1, "text": "a" })] {
        let (status, _) =
            server.ask("/infill", &json!({ "input_prefix": "a", "input_extra": [extra] })).await;
        assert_eq!(status, 400);
    }
}

#[tokio::test]
async fn props_and_slots_describe_the_model_and_what_runs() {
    let server = Server::start(ServerOptions {
        step: std::time::Duration::from_millis(20),
        ..ServerOptions::default()
    });
    let get = async |path| server.get(path).send().await.unwrap().json::<Value>().await.unwrap();
    let props = get("/props").await;
    assert_eq!(props["default_generation_settings"]["n_ctx"], CONTEXT_LENGTH);
    assert_eq!(props["default_generation_settings"]["params"]["n_predict"], 64);
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(1), &json!(MODEL)));
    assert!(!props.to_string().contains("/secret"), "{props}");
    let idle = get("/slots").await;
    assert_eq!((&idle[0]["is_processing"], &idle[0]["id_task"]), (&json!(false), &json!(-1)));
    assert_eq!(get("/load").await["server_load"], 0);
    let body = json!({ "prompt": "Please", "ignore_eos": true, "n_predict": 200, "stream": true });
    let running = server.post(COMPLETION, &body).send().await.unwrap();
    server.has_queued(0).await;
    let busy = get("/slots").await;
    assert_eq!((&busy[0]["is_processing"], &busy[0]["n_ctx"]), (&json!(true), &json!(CONTEXT_LENGTH)));
    assert_eq!(get("/load").await["server_load"], 1);
    drop(running);
    assert_eq!(server.get("/ping").send().await.unwrap().status(), 200);
    assert_eq!(server.client.post(format!("{}/ping", server.url)).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn probabilities_of_tokens_have_ids() {
    let program = crate::support::program::Program::start(&[]).await;
    let body = json!({ "prompt": "Good morning", "n_probs": 5, "n_predict": 4, "temperature": 0 });
    let (_, answer) = program.ask(COMPLETION, &body).await;
    let probabilities = answer["completion_probabilities"].as_array().unwrap();
    assert_eq!(probabilities.len(), 4, "{answer}");
    for token in probabilities {
        assert!(
            token["id"].is_u64() && token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array()
        );
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"]), (5, &token["id"]), "the most probable one was taken");
    }
}

#[tokio::test]
async fn after_sampling_the_probabilities_are_those_of_what_is_drawn_from() {
    let program = crate::support::program::Program::start(&[]).await;
    let ask = async |fields: Value| {
        let mut body = json!({ "prompt": "Good morning", "n_probs": 5, "n_predict": 4, "seed": 3, "post_sampling_probs": true });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, answer) = program.ask(COMPLETION, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["completion_probabilities"].as_array().unwrap().clone()
    };
    for token in ask(json!({ "temperature": 0 })).await {
        assert!(
            (token["prob"].as_f64().unwrap() - 1.0).abs() < 1e-6 && token.get("logprob").is_none(),
            "{token}"
        );
        assert_eq!(
            token["top_probs"].as_array().unwrap().len(),
            1,
            "greedy decoding has one candidate: {token}"
        );
    }
    for token in ask(json!({ "temperature": 2, "top_k": 3 })).await {
        let top: Vec<f64> =
            token["top_probs"].as_array().unwrap().iter().map(|one| one["prob"].as_f64().unwrap()).collect();
        assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b), "{token}");
        assert!((top.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{token}");
        assert!(top.iter().any(|prob| (prob - token["prob"].as_f64().unwrap()).abs() < 1e-9), "{token}");
    }
}

#[tokio::test]
async fn an_answer_has_the_fields_that_the_request_names() {
    let server = Server::start(ServerOptions::default());
    let fields = ["content", "generation_settings/n_predict", "timings/none", "none"];
    let body = json!({ "prompt": "Please", "n_predict": 3, "response_fields": fields });
    let (status, answer) = server.ask(COMPLETION, &body).await;
    assert_eq!((status, answer.as_object().unwrap().len()), (200, 2), "{answer}");
    assert!(answer["content"].is_string() && answer["generation_settings/n_predict"] == 3, "{answer}");
    let body = json!({ "prompt": "Please", "stream": true, "response_fields": ["stop"] });
    let stream = server.stream(COMPLETION, &body).await;
    let (events, _) = events(&stream);
    assert_eq!(events.last().unwrap(), &json!({ "stop": true }));
    assert!(events[0]["content"].is_string(), "only the complete answer is reduced");
}

#[tokio::test]
async fn texts_may_be_objects_as_in_llama_server() {
    let server = Server::start(ServerOptions::default());
    let parts = json!({ "content": [{ "type": "text", "text": "Ple" }, { "type": "text", "text": "ase" }] });
    for prompt in [json!({ "prompt_string": "Please" }), parts.clone(), json!([parts])] {
        let (status, answer) = server.ask(COMPLETION, &json!({ "prompt": prompt, "n_predict": 2 })).await;
        assert_eq!((status, &answer["prompt"]), (200, &json!("Please")), "{answer}");
    }
    let mixed = json!({ "prompt": ["Please", { "prompt_string": "Please" }, [40, 41]], "n_predict": 2 });
    assert_eq!(server.ask(COMPLETION, &mixed).await.1.as_array().unwrap().len(), 3);
}
