//! The queue of tickets: its bound, what is in it, and who may take from it.

use eka::cluster::JOB_FORMAT;
use serde_json::{Value, json};

use crate::support::{cluster::Cluster, processes::send_signal};

/// A word that is nowhere else.
const SECRET: &str = "Quetzalcoatlus";

fn request(stream: bool) -> Value {
    json!({
        "prompt": format!("{SECRET} said good morning."), "max_tokens": 200, "ignore_eos": true, "stream": stream,
    })
}

#[tokio::test]
async fn a_full_queue_refuses_requests_and_says_when_to_try_again() {
    let cluster = Cluster::start_with(1, &["--set", "cluster.max_jobs=2"]).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let sent = cluster.gateway.post("/v1/completions", &request(true)).send();
        waiting.push(tokio::spawn(sent));
        if waiting.len() == 1 {
            cluster.running_node().await;
        }
    }
    cluster.gateway.metrics_with("eka_queue_jobs 2\n").await;
    let refused = cluster.gateway.post("/v1/completions", &request(false)).send().await.unwrap();
    let after = refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(refused.status(), 429);
    assert!((1..=600).contains(&after), "{after}");
    let answer: Value = refused.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "queue_full", "{answer}");
    // Another gateway counts the tickets of this one.
    let other = cluster.another_gateway().await;
    other.metrics_with("eka_cluster_waiting 2\n").await;
    let (status, answer) = other.ask("/v1/completions", &request(false)).await;
    assert_eq!(status, 429, "{answer}");
    // Those who leave take their tickets with them.
    waiting.into_iter().for_each(|sent| sent.abort());
    cluster.gateway.metrics_with("eka_queue_jobs 0\n").await;
    cluster.gateway.metrics_with("eka_cluster_waiting 0\n").await;
    cluster.is_idle().await;
}

#[tokio::test]
async fn no_byte_of_a_prompt_is_in_the_store_of_the_nats_server() {
    let cluster = Cluster::start(1).await;
    let sent = |_| tokio::spawn(cluster.gateway.post("/v1/completions", &request(true)).send());
    let waiting: Vec<_> = (0..3).map(sent).collect();
    cluster.gateway.metrics_with("eka_queue_jobs 2\n").await;
    cluster.gateway.metrics_with("eka_cluster_waiting 2\n").await;
    let store = cluster.nats.store();
    assert!(
        store.windows(11).any(|bytes| bytes == b"traceparent" || bytes == b"Nats-Msg-Id"),
        "tickets are there"
    );
    for word in [SECRET.as_bytes(), b"good morning", b"prompt\""] {
        assert!(!store.windows(word.len()).any(|bytes| bytes == word));
    }
    waiting.into_iter().for_each(|sent| sent.abort());
}

#[tokio::test]
async fn a_gateway_gives_no_request_to_a_node_that_is_too_old() {
    #[derive(serde::Serialize)]
    enum OldRequest {
        Claim { job: u64, node: &'static str, format: u32 },
    }
    let cluster = Cluster::start(1).await;
    let client = async_nats::connect(cluster.nats.url()).await.unwrap();
    let mut states = client.subscribe("eka.*.gw.*.beat").await.unwrap();
    let sent = tokio::spawn(cluster.gateway.post("/v1/completions", &request(true)).send());
    cluster.running_node().await;
    let beat = futures_util::StreamExt::next(&mut states).await.unwrap();
    let subject = beat.subject.replace(".beat", ".claim");
    let claim =
        rmp_serde::to_vec_named(&OldRequest::Claim { job: 1, node: "old", format: JOB_FORMAT - 1 }).unwrap();
    let answer = client.request(subject.clone(), claim.into()).await.unwrap();
    let answer: Value = rmp_serde::from_slice(&answer.payload).unwrap();
    assert!(answer["Refused"]["reason"].as_str().unwrap().contains("upgrade the node"), "{answer}");
    // One that is new enough has to wait for its turn, and bytes of others do no harm.
    let claim =
        rmp_serde::to_vec_named(&OldRequest::Claim { job: 1, node: "new", format: JOB_FORMAT }).unwrap();
    let answer = client.request(subject.clone(), claim.into()).await.unwrap();
    assert_eq!(rmp_serde::from_slice::<Value>(&answer.payload).unwrap(), json!("Taken"));
    client.publish(subject, "{}".into()).await.unwrap();
    client.publish("eka.2.state", "{}".into()).await.unwrap();
    client.flush().await.unwrap();
    cluster.gateway.has_logged("node_version").await;
    sent.abort();
    cluster.is_idle().await;
    send_signal("TERM", cluster.gateway.pid());
}
