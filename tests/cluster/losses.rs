//! What happens when a node, a gateway or the NATS server is lost.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{cluster::Cluster, processes::send_signal, program::Program};

/// Tokens of the answers that are disturbed.
const TOKENS: usize = 120;

fn long() -> Value {
    json!({
        "prompt": "Translate to Hindi: Good morning, friend.",
        "max_tokens": TOKENS,
        "ignore_eos": true,
        "temperature": 0,
    })
}

/// The whole answer without any disturbance.
async fn undisturbed(gateway: &Program) -> Value {
    let (status, answer) = gateway.ask("/v1/completions", &long()).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// A streamed answer: its text, the number of tokens, the longest pause between two pieces, and how often it was resumed.
#[derive(Debug)]
struct Streamed {
    text: String,
    tokens: u64,
    pause: Duration,
    resumed: u64,
}

async fn stream(gateway: &Program) -> Streamed {
    let mut request = long();
    request["stream"] = json!(true);
    request["stream_options"] = json!({ "include_usage": true });
    let mut response = gateway.post("/v1/completions", &request).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (mut whole, mut last, mut pause) = (Vec::new(), None::<Instant>, Duration::ZERO);
    while let Some(piece) = response.chunk().await.unwrap() {
        // Heartbeats are comments.
        if piece.starts_with(b"data:") {
            pause = pause.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
            last = Some(Instant::now());
        }
        whole.extend(piece);
    }
    let (documents, is_done) = crate::support::server::events(&String::from_utf8(whole).unwrap());
    assert!(is_done, "{documents:?}");
    let text = documents.iter().filter_map(|one| one["choices"][0]["text"].as_str()).collect();
    let number = |field: &Value| field.as_u64();
    let tokens = documents.iter().find_map(|one| number(&one["usage"]["completion_tokens"]));
    let resumed = documents.iter().find_map(|one| number(&one["timings"]["resumed"]));
    Streamed { text, tokens: tokens.unwrap(), pause, resumed: resumed.unwrap() }
}

/// Streams an answer, and does something when a node has generated a few tokens of it.
async fn disturbed(cluster: &Cluster, disturb: impl AsyncFn(usize)) -> Streamed {
    let (streamed, ()) = tokio::join!(stream(&cluster.gateway), async {
        let node = cluster.running_node().await;
        sleep(Duration::from_millis(700)).await;
        disturb(node).await;
    });
    streamed
}

#[tokio::test]
async fn a_node_that_is_killed_loses_no_token() {
    let cluster = Cluster::start(2).await;
    let wanted = undisturbed(&cluster.gateway).await;
    let streamed = disturbed(&cluster, async |node| send_signal("KILL", cluster.nodes[node].pid())).await;
    assert_eq!(streamed.text, wanted["choices"][0]["text"].as_str().unwrap());
    assert_eq!((streamed.tokens, streamed.resumed), (TOKENS as u64, 1), "{streamed:?}");
    assert!(streamed.pause < Duration::from_secs(6), "{:?}", streamed.pause);
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_losses_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn choices_with_scores_and_a_form_continue_as_they_began() {
    let cluster = Cluster::start(2).await;
    let mut request = long();
    for (field, value) in [
        ("n", json!(2)),
        ("seed", json!(7)),
        ("temperature", json!(1)),
        ("logprobs", json!(2)),
        ("guided_regex", json!("[a-z ]{2000}")),
    ] {
        request[field] = value;
    }
    request.as_object_mut().unwrap().remove("ignore_eos");
    let (status, wanted) = cluster.gateway.ask("/v1/completions", &request).await;
    assert_eq!(status, 200, "{wanted}");
    let ((status, answer), ()) = tokio::join!(cluster.gateway.ask("/v1/completions", &request), async {
        let node = cluster.running_node().await;
        sleep(Duration::from_millis(700)).await;
        send_signal("KILL", cluster.nodes[node].pid());
    });
    assert_eq!((status, &answer["timings"]["resumed"]), (200, &json!(1)), "{answer}");
    for choice in 0..2 {
        let (before, after) = (&wanted["choices"][choice], &answer["choices"][choice]);
        assert_eq!(before["text"], after["text"]);
        // The scores of tokens before the loss are kept, and none is there twice.
        assert_eq!(before["logprobs"]["tokens"], after["logprobs"]["tokens"]);
        assert_eq!(after["logprobs"]["tokens"].as_array().unwrap().len(), TOKENS);
    }
}

#[tokio::test]
async fn late_tokens_of_a_node_that_was_stopped_are_dropped() {
    let cluster = Cluster::start(2).await;
    let wanted = undisturbed(&cluster.gateway).await;
    let streamed = disturbed(&cluster, async |node| {
        let stopped = cluster.nodes[node].pid();
        send_signal("STOP", stopped);
        cluster.gateway.metrics_with("eka_cluster_losses_total 1\n").await;
        sleep(Duration::from_millis(300)).await;
        send_signal("CONT", stopped);
    })
    .await;
    assert_eq!(streamed.text, wanted["choices"][0]["text"].as_str().unwrap());
    assert_eq!((streamed.tokens, streamed.resumed), (TOKENS as u64, 1));
    let metrics = cluster.gateway.metrics().await;
    assert!(!metrics.contains("eka_cluster_stale_total 0\n"), "the node had tokens left:\n{metrics}");
    cluster.is_idle().await;
}

#[tokio::test]
async fn a_node_that_stops_hands_its_request_over() {
    let cluster = Cluster::start_with(2, &["--set", "cluster.drain=hand-over"]).await;
    let wanted = undisturbed(&cluster.gateway).await;
    let streamed = disturbed(&cluster, async |node| send_signal("TERM", cluster.nodes[node].pid())).await;
    assert_eq!(streamed.text, wanted["choices"][0]["text"].as_str().unwrap());
    assert_eq!(streamed.tokens, TOKENS as u64);
    let metrics = cluster.gateway.metrics().await;
    assert!(metrics.contains("eka_cluster_handed_over_total 1\n"), "{metrics}");
    assert!(metrics.contains("eka_cluster_losses_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_request_that_loses_too_many_nodes_fails() {
    let cluster = Cluster::start_with(2, &["--set", "cluster.max_losses=1"]).await;
    let request = cluster.gateway.post("/v1/completions", &long()).send();
    let (answer, ()) = tokio::join!(request, async {
        let node = cluster.running_node().await;
        send_signal("KILL", cluster.nodes[node].pid());
    });
    let answer = answer.unwrap();
    let (status, answer) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (502, &json!("worker_lost")), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_slot_within_a_second() {
    let cluster = Cluster::start(1).await;
    undisturbed(&cluster.gateway).await;
    let request = tokio::spawn(cluster.gateway.post("/v1/completions", &long()).send());
    cluster.running_node().await;
    cluster.nodes[0].metrics_with("eka_slot_busy 1\n").await;
    request.abort();
    let took = cluster.is_idle().await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn the_slot_of_a_gateway_that_is_killed_is_free_within_two_seconds() {
    let cluster = Cluster::start(1).await;
    let other = cluster.another_gateway().await;
    let request = tokio::spawn(cluster.gateway.post("/v1/completions", &long()).send());
    cluster.running_node().await;
    cluster.nodes[0].metrics_with("eka_slot_busy 1\n").await;
    // The node does not blame gateways before its own connection is some time old.
    sleep(Duration::from_secs(2)).await;
    let before = Instant::now();
    send_signal("KILL", cluster.gateway.pid());
    cluster.nodes[0].metrics_with("eka_slot_busy 0\n").await;
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    assert!(request.await.unwrap().is_err(), "its client has to ask again");
    undisturbed(&other).await;
}

#[tokio::test]
async fn answers_go_on_while_the_nats_server_restarts() {
    let mut cluster = Cluster::start(2).await;
    let wanted = undisturbed(&cluster.gateway).await;
    let answers = {
        let Cluster { gateway, nats, .. } = &mut cluster;
        let streams = join_all((0..5).map(|_| stream(gateway)));
        let restart = async {
            sleep(Duration::from_millis(1500)).await;
            nats.kill();
            sleep(Duration::from_millis(500)).await;
            nats.start_again();
        };
        tokio::join!(streams, restart).0
    };
    for answer in answers {
        assert_eq!(answer.text, wanted["choices"][0]["text"].as_str().unwrap());
        assert_eq!(answer.tokens, TOKENS as u64, "{answer:?}");
    }
}

#[tokio::test]
async fn waiting_requests_survive_a_nats_server_that_forgets_its_queue() {
    let mut cluster = Cluster::start_with(1, &["--set", "cluster.storage=memory"]).await;
    let answers = {
        let Cluster { gateway, nats, .. } = &mut cluster;
        let requests = join_all((0..3).map(|_| gateway.ask_long()));
        let restart = async {
            sleep(Duration::from_millis(1000)).await;
            nats.kill();
            nats.start_again();
        };
        tokio::join!(requests, restart).0
    };
    for (status, answer) in answers {
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], TOKENS);
    }
}

impl Program {
    async fn ask_long(&self) -> (u16, Value) {
        self.ask("/v1/completions", &long()).await
    }
}
