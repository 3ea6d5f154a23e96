//! Looks after the tickets of a gateway that wait in the stream, and has lost ones published again.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;

use super::{mail::Mail, shared::Shared};
use crate::cluster::{jetstream::StreamInfo, subjects::Pool};

/// Interval at which the gateway looks whether waiting tickets still exist.
const LOOK: Duration = Duration::from_secs(2);

/// Interval at which the number of waiting tickets is read.
const COUNT: Duration = Duration::from_millis(500);

/// Tickets that are looked for one by one in a round. A stream that was lost is found by its own time of creation.
const LOOKED_FOR: usize = 16;

/// Has lost tickets published again, and counts those of all gateways.
pub(super) async fn watch(shared: Arc<Shared>) {
    let (mut look, mut count) = (interval(LOOK), interval(COUNT));
    let (mut known, mut next) = (StreamInfo::default(), 0);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let own = shared.tickets.all();
                let is_lost = match shared.stream.info().await {
                    Ok(info) => {
                        let is_new = !known.created.is_empty()
                            && (known.created != info.created || info.last < known.last);
                        known = info;
                        is_new
                    }
                    Err(_) => {
                        make_again(&shared).await;
                        false
                    }
                };
                if is_lost {
                    make_again(&shared).await;
                    own.iter().for_each(|(group, _)| publish_again(&shared, *group));
                } else {
                    next = look_for(&shared, &own, next).await;
                }
            }
            _ = count.tick() => {
                if let Ok(info) = shared.stream.info().await {
                    let own = shared.tickets.len();
                    let waiting = usize::try_from(info.tickets).unwrap_or(usize::MAX);
                    shared.queue.set_waiting_elsewhere(waiting.saturating_sub(own));
                    shared.metrics.cluster.waiting.set(i64::try_from(info.tickets).unwrap_or(i64::MAX));
                }
            }
        }
    }
}

/// Creates the stream again after a broker that keeps it in memory was restarted.
async fn make_again(shared: &Shared) {
    if shared.broker.connected_since().is_none() || shared.stream.create().await.is_err() {
        return;
    }
    let pools: Vec<&Pool> = shared.pools.values().collect();
    for pool in pools {
        let _ = shared.stream.create_consumers(pool).await;
    }
}

/// Looks for some tickets, from the `next` one on; returns where to go on.
async fn look_for(shared: &Shared, own: &[(u64, u64)], next: usize) -> usize {
    let from = if next < own.len() { next } else { 0 };
    for (group, ticket) in own.iter().skip(from).take(LOOKED_FOR) {
        if shared.stream.has(*ticket).await == Ok(false) && shared.tickets.of(*group) == Some(*ticket) {
            publish_again(shared, *group);
        }
    }
    from + LOOKED_FOR
}

fn publish_again(shared: &Shared, group: u64) {
    if shared.mail(group, Mail::TicketLost) {
        shared.metrics.cluster.republished.inc();
    }
}
