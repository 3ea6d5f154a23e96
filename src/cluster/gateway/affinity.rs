//! Offers a job to the node that keeps the beginning of its prompt, before its ticket is published.
//!
//! The queue stays the rule: an offer is one request, and if the node does not claim the job in time, its ticket is published as any
//! other. A node that claims both finds the job taken. A job waits for a busy node only as long as another node would read the
//! beginning, so it is not slower than without an offer. A batch job does not wait, because it would overtake interactive ones.

use std::time::Duration;

use tokio::time::sleep;

use super::shared::Shared;
use crate::{
    cluster::{
        fleet::Holder,
        messages::{NodeAnswer, NodeRequest, decode, encode},
        options::Affinity,
        prefixes,
    },
    executor::AcceptedGroup,
    job::Priority,
};

/// Offers the group, if a node keeps its beginning. Returns when its ticket should be published.
pub(super) async fn offer(shared: &Shared, group: &AcceptedGroup) {
    let Some(holder) = holder(shared, group) else { return };
    let wait = patience(shared.options.affinity, group.terms.priority, &holder);
    let offer = NodeRequest::Offer {
        gateway: shared.options.id.clone(),
        job: group.group.0,
        wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
    };
    let subject = shared.broker.subjects.control(&holder.node);
    let answer = shared.broker.request(&subject, encode(&offer), shared.options.probe).await;
    let outcome = match answer.ok().and_then(|answer| decode(&answer.payload).ok()) {
        Some(NodeAnswer::Accepted) => "accepted",
        Some(NodeAnswer::Kept) => "kept",
        _ => "refused",
    };
    shared.metrics.cluster.count_offer(outcome);
    match outcome {
        // Its claim is on the way.
        "accepted" => sleep(shared.options.probe * 2).await,
        "kept" => sleep(wait).await,
        _ => {}
    }
}

fn holder(shared: &Shared, group: &AcceptedGroup) -> Option<Holder> {
    if shared.options.affinity == Affinity::Off || !shared.fleet.keeps_prompts() {
        return None;
    }
    let pool = shared.pools.get(&group.model)?;
    let chain = prefixes::of_prompt(pool, &shared.queue.first_of(group.group)?);
    shared.fleet.holder(pool.as_str(), &chain)
}

/// How long a job waits for the node.
fn patience(affinity: Affinity, priority: Priority, holder: &Holder) -> Duration {
    match (affinity, priority) {
        (Affinity::Worth, Priority::Interactive) => holder.saves.unwrap_or_default(),
        (Affinity::Off | Affinity::Idle | Affinity::Worth, _) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_for_a_node_as_long_as_reading_again_takes() {
        let saves = Duration::from_secs(3);
        let holder = Holder { node: "n".into(), saves: Some(saves) };
        let interactive = |affinity| patience(affinity, Priority::Interactive, &holder);
        assert_eq!([Affinity::Off, Affinity::Idle].map(interactive), [Duration::ZERO; 2]);
        assert_eq!(interactive(Affinity::Worth), saves);
        assert_eq!(patience(Affinity::Worth, Priority::Batch, &holder), Duration::ZERO);
        let unknown = Holder { saves: None, ..holder };
        assert_eq!(patience(Affinity::Worth, Priority::Interactive, &unknown), Duration::ZERO);
    }
}
