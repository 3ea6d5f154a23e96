//! What clients of a gateway see is what a single server gives.

use serde_json::{Value, json};

use crate::support::{cluster::Cluster, program::expected, server::events};

#[tokio::test]
async fn answers_through_a_gateway_are_those_of_a_single_server() {
    let cluster = Cluster::start(2).await;
    for wanted in expected().iter().take(3) {
        let request = json!({ "prompt": wanted.prompt, "max_new_tokens": 64, "temperature": 0 });
        let chat = json!({ "messages": [{ "role": "user", "content": wanted.prompt }], "temperature": 0 });
        let (status, answer) = cluster.gateway.ask("/v1/chat/completions", &chat).await;
        assert_eq!(
            (status, &answer["choices"][0]["message"]["content"]),
            (200, &json!(wanted.text)),
            "{answer}"
        );
        assert_eq!(answer["usage"]["completion_tokens"], wanted.tokens, "the end token is one of them");
        let (whole, pieces) = cluster.gateway.both_ways(&request).await;
        assert_eq!(whole["text"].as_str().unwrap(), pieces.concat());
    }
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_losses_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn choices_forms_and_scores_work_through_a_gateway() {
    let cluster = Cluster::start(1).await;
    let schema = json!({
        "type": "object",
        "properties": { "answer": { "enum": ["yes", "no"] } },
        "required": ["answer"],
        "additionalProperties": false,
    });
    let request = json!({
        "messages": [{ "role": "user", "content": "Good morning" }],
        "n": 2,
        "seed": 7,
        "logprobs": true,
        "max_tokens": 40,
        "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": schema } },
    });
    let (status, answer) = cluster.gateway.ask("/v1/chat/completions", &request).await;
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for choice in choices {
        let content: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(["yes", "no"].map(|word| json!({ "answer": word })).contains(&content), "{content}");
        assert!(!choice["logprobs"]["content"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_gateway_lists_the_slots_and_models_of_its_nodes_and_nodes_answer_only_probes() {
    let cluster = Cluster::start(2).await;
    let ready: Value = cluster.gateway.get("/readyz").await.json().await.unwrap();
    assert_eq!(ready["devices"], json!({ "node-1": "ready", "node-2": "ready" }));
    let slot: Value = cluster.gateway.get("/v1/slot").await.json().await.unwrap();
    assert_eq!(slot["devices"].as_array().unwrap().len(), 2);
    let models: Value = cluster.gateway.get("/v1/models").await.json().await.unwrap();
    assert_eq!((&models["data"][0]["id"], models["data"].as_array().unwrap().len()), (&json!("demo"), 1));
    assert!(!models["data"][0]["eka"]["loaded"].is_null(), "{models}");
    let (status, answer) =
        cluster.gateway.ask("/v1/completions", &json!({ "model": "other", "prompt": "a" })).await;
    assert!(status == 404 && answer["error"]["message"].as_str().unwrap().contains("\"demo\""), "{answer}");
    let node = &cluster.nodes[0];
    for path in ["/livez", "/readyz", "/metrics", "/version", "/v1/slot"] {
        assert_eq!(node.get(path).await.status(), 200, "{path}");
    }
    let (status, _) = node.ask("/v1/completions", &json!({ "prompt": "a" })).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_server_that_joins_is_a_gateway_and_a_node() {
    let nats = crate::support::cluster::NatsServer::start();
    let server = crate::support::program::Program::start(&["--join", &nats.url()]).await;
    let wanted = &expected()[0];
    let chat = json!({
        "messages": [{ "role": "user", "content": wanted.prompt }], "temperature": 0, "stream": true,
    });
    let stream = server.post("/v1/chat/completions", &chat).send().await.unwrap().text().await.unwrap();
    let (documents, is_done) = events(&stream);
    let pieces = documents.iter().filter_map(|one| one["choices"][0]["delta"]["content"].as_str());
    assert_eq!((pieces.collect::<String>(), is_done), (wanted.text.clone(), true));
    assert!(server.metrics().await.contains("eka_cluster_claimed_total 1\n"));
}
