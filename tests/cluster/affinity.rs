//! Requests go to the node that has read the beginning of their prompt.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{cluster::Cluster, program::Program};

/// A conversation of about 150 tokens; others have nothing in common with it.
fn conversation(name: &str) -> String {
    format!("{name}: Good morning, friend. Please speak slowly. ").repeat(10)
}

async fn ask(gateway: &Program, prompt: &str, tokens: usize) -> Value {
    let request = json!({ "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "temperature": 0 });
    let (status, answer) = gateway.ask("/v1/completions", &request).await;
    assert_eq!(status, 200, "{answer}");
    // The node tells gateways what it has read.
    sleep(Duration::from_millis(200)).await;
    answer["usage"].clone()
}

fn cached(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_goes_to_the_node_that_has_read_it() {
    let cluster = Cluster::start(2).await;
    let (one, other) = (conversation("Maya"), conversation("Ravi"));
    for prompt in [&one, &other] {
        assert_eq!(cached(&ask(&cluster.gateway, prompt, 4).await), 0);
    }
    // The node that has been free for longest would take the next request, so without affinity the first of these misses.
    for (turn, prompt) in [&other, &one, &one, &other, &one].into_iter().enumerate() {
        let usage = ask(&cluster.gateway, &format!("{prompt} And then?"), 4).await;
        assert!(cached(&usage) >= 64, "turn {turn}: {usage}");
    }
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_offers_total{answer=\"accepted\"} 5\n"), "{metrics}");
}

#[tokio::test]
async fn without_affinity_no_request_is_offered() {
    let cluster = Cluster::start_with(2, &["--set", "cluster.affinity=off"]).await;
    let prompt = conversation("Maya");
    for _ in 0..3 {
        ask(&cluster.gateway, &prompt, 4).await;
    }
    assert!(!cluster.gateway.metrics().await.contains("eka_cluster_offers_total{"));
}

#[tokio::test]
async fn a_request_does_not_wait_until_a_busy_node_is_free() {
    let cluster = Cluster::start_with(2, &["--set", "cluster.affinity=worth"]).await;
    let prompt = conversation("Maya");
    ask(&cluster.gateway, &prompt, 4).await;
    // It occupies the node that has read the beginning.
    let long = json!({ "prompt": prompt, "max_tokens": 200, "ignore_eos": true, "stream": true });
    let busy = tokio::spawn(cluster.gateway.post("/v1/completions", &long).send());
    cluster.running_node().await;
    ask(&cluster.gateway, &prompt, 2).await;
    cluster.running_node().await;
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_offers_total{answer=\"kept\"} 1\n"), "{metrics}");
    busy.abort();
}
