//! Nodes with several models.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    cluster::{NatsServer, copy_texts},
    files::copy,
    program::{Program, argument},
};

#[tokio::test]
async fn a_node_loads_the_model_of_the_next_request_and_keeps_no_model_waiting() {
    let nats = NatsServer::start();
    let (whole, texts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let export = Program::start(&[]).await.export();
    for name in ["first", "second"] {
        copy(&export, &whole.path().join(name));
        copy_texts(&export, &texts.path().join(name));
    }
    let url = nats.url();
    // There is room for one model.
    let own = ["--join", &url, "--models", argument(whole.path()), "--set", "models.memory_bytes=1"];
    let node =
        Program::start_as_role("node", &[&own[..], &["--set", "queue.max_overtakes=2"]].concat()).await;
    let own = ["--join", &url, "--models", argument(texts.path()), "--set", "queue.timeout_ms=300000"];
    let gateway = Program::start_as_role("gateway", &own).await;

    let ask = |model: &'static str| {
        let request =
            json!({ "model": model, "prompt": "Good morning", "max_tokens": 4, "ignore_eos": true });
        let sent = gateway.post("/v1/completions", &request).send();
        async move {
            let answer = sent.await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let mut models = ["first"; 9];
    models[5] = "second";
    for (model, (status, answer)) in models.into_iter().zip(join_all(models.map(ask)).await) {
        assert_eq!((status, &answer["model"]), (200, &json!(model)), "{answer}");
    }
    let slot: Value = gateway.get("/v1/slot").await.json().await.unwrap();
    let order: Vec<&str> =
        slot["history"].as_array().unwrap().iter().map(|past| past["model"].as_str().unwrap()).collect();
    let place = order.iter().position(|model| *model == "second").unwrap();
    assert!(place < 8, "it did not wait for all others: {order:?}");
    let list: Value = gateway.get("/v1/models").await.json().await.unwrap();
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["first", "second"]);
    assert!(node.metrics().await.contains("eka_cluster_claimed_total 9\n"));
}
