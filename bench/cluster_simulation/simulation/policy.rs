//! How a cluster chooses the node of a request.

use std::fmt;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::node::Node;

/// Seconds between two readings of the metrics, for [`Policy::LeastStale`].
pub(crate) const METRICS_INTERVAL_S: f64 = 1.0;

/// A way to choose the node of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Requests wait in one queue; a node takes the next one when it is free.
    Pull,
    /// The node that keeps the conversation's prefix if it is idle, else the queue.
    AffinityIfIdle,
    /// Waits for the node that keeps the prefix at most as long as reading the prefix again takes, then the queue.
    AffinityWorth,
    /// The node with the fewest requests, at once.
    LeastExact,
    /// The same by metrics that are up to [`METRICS_INTERVAL_S`] old.
    LeastStale,
    /// The one of two random nodes that has fewer requests.
    PowerOfTwo,
    /// One node after the other.
    RoundRobin,
    /// Any node.
    Random,
}

impl Policy {
    /// All policies, in the order of the table.
    pub(crate) const ALL: [Self; 8] = [
        Self::Pull,
        Self::AffinityIfIdle,
        Self::AffinityWorth,
        Self::LeastExact,
        Self::LeastStale,
        Self::PowerOfTwo,
        Self::RoundRobin,
        Self::Random,
    ];

    /// Short name, for flags and documents.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::AffinityIfIdle => "affinity-idle",
            Self::AffinityWorth => "affinity-worth",
            Self::LeastExact => "least-exact",
            Self::LeastStale => "least-stale",
            Self::PowerOfTwo => "power-of-two",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the policies without a common queue remember between requests.
pub(super) struct Router {
    random: ChaCha8Rng,
    next: usize,
    /// Requests of each node when the metrics were last read.
    metrics: Vec<usize>,
}

impl Router {
    pub(super) fn new(nodes: usize, random: ChaCha8Rng) -> Self {
        Self { random, next: 0, metrics: vec![0; nodes] }
    }

    pub(super) fn read_metrics(&mut self, nodes: &[Node]) {
        self.metrics = nodes.iter().map(Node::requests).collect();
    }

    /// The node whose own queue takes the request; `None` for policies with a common queue.
    pub(super) fn choose(&mut self, policy: Policy, nodes: &[Node]) -> Option<usize> {
        match policy {
            Policy::Pull | Policy::AffinityIfIdle | Policy::AffinityWorth => None,
            Policy::LeastExact => Some(self.least(nodes.iter().map(Node::requests))),
            Policy::LeastStale => {
                let metrics = std::mem::take(&mut self.metrics);
                let chosen = self.least(metrics.iter().copied());
                self.metrics = metrics;
                Some(chosen)
            }
            Policy::PowerOfTwo => {
                let mut any = || self.random.random_range(0..nodes.len());
                let (a, b) = (any(), any());
                Some(if nodes[b].requests() < nodes[a].requests() { b } else { a })
            }
            Policy::RoundRobin => {
                self.next = (self.next + 1) % nodes.len();
                Some(self.next)
            }
            Policy::Random => Some(self.random.random_range(0..nodes.len())),
        }
    }

    /// Index of the smallest; a random one of several.
    fn least(&mut self, requests: impl Iterator<Item = usize>) -> usize {
        let (mut chosen, mut least, mut equal) = (0, usize::MAX, 0_u32);
        for (node, requests) in requests.enumerate() {
            if requests < least {
                (chosen, least, equal) = (node, requests, 1);
            } else if requests == least {
                equal += 1;
                if self.random.random_range(0..equal) == 0 {
                    chosen = node;
                }
            }
        }
        chosen
    }
}
