//! Every process of a cluster is restarted under load, as an upgrade does.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{cluster::Cluster, server::events};

const TOKENS: usize = 40;

/// One streamed answer. `None` if the gateway takes no requests, as a load balancer that looks at `/readyz` would know.
async fn stream(client: &reqwest::Client, gateway: &str) -> Option<Result<String, String>> {
    let request = json!({
        "prompt": "Translate to Hindi: Good morning, friend.",
        "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let sent = client.post(format!("{gateway}/v1/completions")).json(&request).send().await;
    let response = sent.ok().filter(|response| response.status() != 503)?;
    let status = response.status();
    let text = match response.text().await {
        Ok(text) if status == 200 => text,
        Ok(text) => return Some(Err(format!("{status}: {text}"))),
        Err(error) => return Some(Err(error.to_string())),
    };
    let (documents, is_done) = events(&text);
    let pieces = documents.iter().filter_map(|one: &Value| one["choices"][0]["text"].as_str());
    Some(if is_done { Ok(pieces.collect()) } else { Err(text) })
}

#[tokio::test]
async fn restarting_every_node_and_gateway_fails_no_request() {
    let mut cluster = Cluster::start(2).await;
    let mut second = cluster.another_gateway().await;
    let client = reqwest::Client::new();
    let wanted = stream(&client, &second.url).await.unwrap().unwrap();
    let gateways = Mutex::new([cluster.gateway.url.clone(), second.url.clone()]);
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ask = async |first: usize| {
        let (mut at, mut wrong) = (first, Vec::new());
        while !is_over.load(Ordering::Relaxed) {
            let gateway = gateways.lock().unwrap()[at % 2].clone();
            at += 1;
            match stream(&client, &gateway).await {
                None => sleep(Duration::from_millis(20)).await,
                Some(Ok(text)) if text == wanted => {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Some(other) => wrong.push(other),
            }
        }
        wrong
    };
    let restart = async {
        for node in 0..2 {
            sleep(Duration::from_millis(500)).await;
            cluster.restart_node(node).await;
            cluster.has_slots(2).await;
        }
        for at in 0..2 {
            let new = cluster.another_gateway().await;
            new.metrics_with("eka_cluster_slots 2\n").await;
            gateways.lock().unwrap()[at] = new.url.clone();
            let mut old = std::mem::replace(if at == 0 { &mut cluster.gateway } else { &mut second }, new);
            let ended = old.end_with("TERM").await;
            assert!(ended.success(), "{ended}:\n{}", old.log());
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (wrong, ()) = tokio::join!(join_all((0..3).map(ask)), restart);
    assert_eq!(wrong.concat(), [] as [Result<String, String>; 0]);
    assert!(answered.load(Ordering::Relaxed) >= 10, "{answered:?}");
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_losses_total 0\n"), "{metrics}");
}
