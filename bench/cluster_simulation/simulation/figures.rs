//! What a run shows: waits, kept prefixes, and how busy the nodes were.

use serde::Serialize;

/// Figures of a run, without its warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Requests that were counted.
    pub(crate) requests: usize,
    /// Median seconds from arrival to the start on a node.
    pub(crate) wait_p50_s: f64,
    /// 99th percentile of the same.
    pub(crate) wait_p99_s: f64,
    /// Mean of the same.
    pub(crate) wait_mean_s: f64,
    /// Median seconds from arrival to the first token.
    pub(crate) ttft_p50_s: f64,
    /// 99th percentile of the same.
    pub(crate) ttft_p99_s: f64,
    /// Share of the requests whose node kept the conversation's prefix.
    pub(crate) prefix_hits: f64,
    /// Mean share of the nodes that were busy.
    pub(crate) utilization: f64,
    /// Requests that arrived per second.
    pub(crate) arrival_rate: f64,
    /// Mean seconds that a request occupied its node.
    pub(crate) service_mean_s: f64,
    /// Mean number of waiting requests, measured over time and not from the waits.
    pub(crate) queue_mean: f64,
}

/// What is noted of each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) wait_s: f64,
    pub(super) ttft_s: f64,
    pub(super) service_s: f64,
    pub(super) was_kept: bool,
}

/// Time integrals over the part of the run that is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Integrals {
    pub(super) seconds: f64,
    pub(super) arrivals: usize,
    pub(super) busy_node_s: f64,
    pub(super) waiting_request_s: f64,
}

impl Figures {
    pub(super) fn of(outcomes: &[Outcome], over: Integrals, nodes: usize) -> Self {
        let mean = |value: fn(&Outcome) -> f64| {
            outcomes.iter().map(value).sum::<f64>() / outcomes.len().max(1) as f64
        };
        let waits = sorted(outcomes, |outcome| outcome.wait_s);
        let ttfts = sorted(outcomes, |outcome| outcome.ttft_s);
        Self {
            requests: outcomes.len(),
            wait_p50_s: percentile(&waits, 50),
            wait_p99_s: percentile(&waits, 99),
            wait_mean_s: mean(|outcome| outcome.wait_s),
            ttft_p50_s: percentile(&ttfts, 50),
            ttft_p99_s: percentile(&ttfts, 99),
            prefix_hits: mean(|outcome| f64::from(u8::from(outcome.was_kept))),
            utilization: over.busy_node_s / (over.seconds * nodes as f64),
            arrival_rate: over.arrivals as f64 / over.seconds,
            service_mean_s: mean(|outcome| outcome.service_s),
            queue_mean: over.waiting_request_s / over.seconds,
        }
    }
}

fn sorted(outcomes: &[Outcome], value: fn(&Outcome) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = outcomes.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The nearest-rank percentile of sorted values; 0 of none.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
