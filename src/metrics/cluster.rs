//! Metrics of gateways and nodes.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Label of metrics of one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeLabel {
    /// Its name, `cluster.node_id`.
    pub node: String,
}

/// Label of offers: `accepted`, `kept` until a slot is free, or `refused`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfferLabel {
    answer: &'static str,
}

/// Metrics of a gateway or node. A server on its own has them at zero and does not show them.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetrics {
    /// Whether the NATS server is connected: 0 or 1.
    pub connected: Gauge,
    /// Nodes that report to this gateway.
    pub nodes: Gauge,
    /// Slots of nodes that can take requests.
    pub slots: Gauge,
    /// Requests that wait in the queue of all gateways.
    pub waiting: Gauge,
    /// Claims granted by this gateway.
    pub claims: Counter,
    /// Nodes lost while they ran a request of this gateway.
    pub losses: Counter,
    /// Requests that a stopping node gave to another one.
    pub handed_over: Counter,
    /// Tickets published again because the queue had lost them.
    pub republished: Counter,
    /// Events asked for again after a gap.
    pub replays: Counter,
    /// Messages of nodes that no longer run the request.
    pub stale: Counter,
    /// Jobs offered to nodes that keep the beginning of their prompts, by what the node said.
    offers: Family<OfferLabel, Counter>,
    /// Whether a node reports: 0 or 1.
    pub node_up: Family<NodeLabel, Gauge>,
    /// Slots of a node that can take requests.
    pub node_slots: Family<NodeLabel, Gauge>,
    /// Requests of this gateway that run on a node.
    pub node_running: Family<NodeLabel, Gauge>,
    /// Claims of a node that this gateway granted.
    pub node_claims: Family<NodeLabel, Counter>,
    /// Tokens that a node generated for this gateway.
    pub node_tokens: Family<NodeLabel, Counter>,
    /// Times that a node was lost while it ran a request of this gateway.
    pub node_losses: Family<NodeLabel, Counter>,
    /// Claims of this node.
    pub claimed: Counter,
    /// Requests of gateways that went away while this node ran them.
    pub orphaned: Counter,
}

impl ClusterMetrics {
    /// Counts a job that was offered to a node.
    pub fn count_offer(&self, answer: &'static str) {
        self.offers.get_or_create(&OfferLabel { answer }).inc();
    }

    /// Drops the metrics of a node that has gone for good, because nodes may have a new name at each start.
    pub fn forget(&self, node: &NodeLabel) {
        for gauges in [&self.node_up, &self.node_slots, &self.node_running] {
            gauges.remove(node);
        }
        for counters in [&self.node_claims, &self.node_tokens, &self.node_losses] {
            counters.remove(node);
        }
    }

    pub(super) fn add_to(&self, r: &mut Registry) {
        r.register(
            "cluster_connected",
            "Whether the NATS server is connected: 0 or 1",
            self.connected.clone(),
        );
        r.register("cluster_nodes", "Nodes that report to this gateway", self.nodes.clone());
        r.register("cluster_slots", "Slots of nodes that can take requests", self.slots.clone());
        r.register(
            "cluster_waiting",
            "Requests that wait in the queue of all gateways",
            self.waiting.clone(),
        );
        r.register("cluster_claims", "Claims that this gateway granted", self.claims.clone());
        r.register(
            "cluster_losses",
            "Nodes lost while they ran a request of this gateway",
            self.losses.clone(),
        );
        r.register(
            "cluster_handed_over",
            "Requests that a stopping node gave to another one",
            self.handed_over.clone(),
        );
        r.register(
            "cluster_republished",
            "Tickets published again because the queue had lost them",
            self.republished.clone(),
        );
        r.register(
            "cluster_replays",
            "Times that events were asked for again after a gap",
            self.replays.clone(),
        );
        r.register("cluster_stale", "Messages of nodes that no longer run the request", self.stale.clone());
        r.register(
            "cluster_offers",
            "Requests offered to the node that keeps their beginning, by its answer",
            self.offers.clone(),
        );
        r.register("cluster_node_up", "Whether a node reports to this gateway: 0 or 1", self.node_up.clone());
        r.register("cluster_node_slots", "Slots of a node that can take requests", self.node_slots.clone());
        r.register(
            "cluster_node_running",
            "Requests of this gateway that run on a node",
            self.node_running.clone(),
        );
        r.register(
            "cluster_node_claims",
            "Claims of a node that this gateway granted",
            self.node_claims.clone(),
        );
        r.register(
            "cluster_node_tokens",
            "Tokens that a node generated for this gateway",
            self.node_tokens.clone(),
        );
        r.register(
            "cluster_node_losses",
            "Times that a node was lost while it ran a request",
            self.node_losses.clone(),
        );
        r.register("cluster_claimed", "Claims that this node was granted", self.claimed.clone());
        r.register(
            "cluster_orphaned",
            "Requests stopped on this node because their gateway had gone",
            self.orphaned.clone(),
        );
    }
}
