//! What operators see of a cluster, and do with it, at a gateway.

use serde_json::json;

use crate::support::cluster::Cluster;

#[tokio::test]
async fn commands_at_a_gateway_run_on_every_node() {
    let mut cluster = Cluster::start(2).await;
    let gateway = &cluster.gateway;
    let (status, answer) = gateway.ask("/admin/trim", &json!({})).await;
    let devices: Vec<&str> =
        answer["devices"].as_array().unwrap().iter().map(|one| one["device"].as_str().unwrap()).collect();
    assert_eq!((status, devices), (200, vec!["node-1", "node-2"]), "{answer}");
    for (command, loaded) in [("unload", json!([])), ("load", json!(["demo"]))] {
        let (status, answer) = gateway.ask(&format!("/admin/models/demo/{command}"), &json!({})).await;
        assert_eq!(status, 200, "{answer}");
        for device in answer["devices"].as_array().unwrap() {
            assert_eq!(device["loaded"], loaded, "{command}: {answer}");
        }
    }
    let save = json!({ "action": "save", "name": "a", "prompt": "b" });
    let (status, answer) = gateway.ask("/admin/cache", &save).await;
    assert_eq!((status, &answer["error"]["code"]), (501, &json!("not_implemented")), "{answer}");

    let (status, answer) = gateway.ask("/admin/nodes/nowhere/drain", &json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("node_not_found")), "{answer}");
    let (status, answer) = gateway.ask("/admin/nodes/node-2/drain", &json!({})).await;
    assert_eq!((status, answer), (202, json!({ "node": "node-2", "draining": true })));
    assert!(cluster.nodes[1].end().await.success());
    cluster.has_slots(1).await;
    let (status, answer) =
        cluster.gateway.ask("/v1/completions", &json!({ "prompt": "a", "max_tokens": 2 })).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_gateway_has_metrics_of_each_node() {
    let cluster = Cluster::start(2).await;
    for _ in 0..2 {
        let (status, answer) = cluster
            .gateway
            .ask("/v1/completions", &json!({ "prompt": "a", "max_tokens": 5, "ignore_eos": true }))
            .await;
        assert_eq!(status, 200, "{answer}");
    }
    let metrics = cluster.gateway.metrics_with("eka_cluster_node_running{node=\"node-2\"} 0\n").await;
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(sum("eka_cluster_node_up{"), 2);
    assert_eq!(sum("eka_cluster_node_slots{"), 2);
    assert_eq!(sum("eka_cluster_node_claims_total{"), 2, "{metrics}");
    assert_eq!(sum("eka_cluster_node_tokens_total{"), 10, "{metrics}");
}

#[tokio::test]
async fn embeddings_of_many_inputs_and_stored_responses_work_through_a_gateway() {
    let cluster = Cluster::start_with(1, &["--set", "server.stored_responses_bytes=1000000"]).await;
    let inputs: Vec<String> = (0..50).map(|number| format!("{number} good mornings")).collect();
    let (status, answer) = cluster.gateway.ask("/v1/embeddings", &json!({ "input": inputs })).await;
    assert_eq!((status, answer["data"].as_array().unwrap().len()), (200, 50), "{answer}");
    let (status, single) = cluster.gateway.ask("/v1/embeddings", &json!({ "input": inputs[49] })).await;
    assert_eq!((status, &single["data"][0]["embedding"]), (200, &answer["data"][49]["embedding"]));

    let first = json!({ "input": "Good morning", "max_output_tokens": 4 });
    let (status, answer) = cluster.gateway.ask("/v1/responses", &first).await;
    assert_eq!(status, 200, "{answer}");
    let next = json!({ "input": "And then?", "max_output_tokens": 4, "previous_response_id": answer["id"] });
    let (status, answer) = cluster.gateway.ask("/v1/responses", &next).await;
    assert_eq!(status, 200, "{answer}");
    // Responses are stored by the gateway that gave them.
    let other = cluster.another_gateway().await;
    let (status, answer) = other.ask("/v1/responses", &next).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("previous_response_id")), "{answer}");
}
