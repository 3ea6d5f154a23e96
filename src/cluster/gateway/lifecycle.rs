//! The life of a group of jobs: one task from acceptance to the end.
//!
//! ```text
//! Queued ──claim──► Running ──all done──► ended
//!   ▲                  │
//!   └──ticket, class r─┘ node lost or handing over
//! ```

use std::sync::Arc;

use super::{owner::Owner, run::run_group};
use crate::cluster::messages::{ClaimAnswer, encode};

/// Sees to it that the jobs run, until they have ended.
pub(super) async fn run(mut owner: Owner) {
    let (shared, group) = (Arc::clone(&owner.shared), owner.group.group);
    while let Some(claim) = owner.claimed(owner.group.terms.priority.into()).await {
        let slot = shared.fleet.slot_of(&claim.node, 0);
        match shared.queue.claim(group, slot) {
            Some(claimed) => {
                let mut task = Some((owner, claim));
                shared.queue.run(claimed, |jobs, events| run_group(task.take(), jobs, events)).await;
                break;
            }
            None => {
                shared.broker.answer(&claim.message, encode(&ClaimAnswer::Gone)).await;
                // Clients that left at this moment are not always reported as withdrawn.
                if !shared.queue.is_waiting(group) {
                    break;
                }
            }
        }
    }
    shared.owners().remove(&group.0);
    if let Some(ticket) = shared.tickets.remove(group.0) {
        let _ = shared.stream.delete(ticket).await;
    }
}
