//! Looks after the tickets of a gateway that wait in the stream, and has lost ones published again.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{interval, sleep};

use super::{mail::Mail, shared::Shared};
use crate::cluster::{jetstream::StreamInfo, subjects::Pool};

/// Interval at which the gateway looks whether waiting tickets still exist.
const LOOK: Duration = Duration::from_secs(2);

/// Interval at which the number of waiting tickets is read.
const COUNT: Duration = Duration::from_millis(500);

/// After the connection is made, servers of a cluster may still elect a leader.
const SETTLED: Duration = Duration::from_millis(500);

/// Tickets that are looked for one by one in a round, at the same time. A stream that was lost is found by its own time of creation.
const LOOKED_FOR: usize = 16;

/// Has lost tickets published again, and counts those of all gateways.
pub(super) async fn watch(shared: Arc<Shared>) {
    let (mut look, mut count) = (interval(LOOK), interval(COUNT));
    let (mut known, mut next) = (StreamInfo::default(), 0);
    let mut connection = shared.broker.connection();
    loop {
        tokio::select! {
            // Nodes remove tickets of a gateway that they cannot reach.
            Ok(()) = connection.changed() => {
                sleep(SETTLED).await;
                let own = shared.tickets.all();
                look_for(&shared, &own, (0, own.len())).await;
            }
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
                    next = if next < own.len() { next } else { 0 };
                    look_for(&shared, &own, (next, LOOKED_FOR)).await;
                    next += LOOKED_FOR;
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

/// Looks for this number of tickets, from a position in the list on.
async fn look_for(shared: &Shared, own: &[(u64, u64)], (from, count): (usize, usize)) {
    let look = |(group, ticket): (u64, u64)| async move {
        if shared.stream.has(ticket).await == Ok(false) && shared.tickets.of(group) == Some(ticket) {
            publish_again(shared, group);
        }
    };
    let tickets: Vec<(u64, u64)> = own.iter().skip(from).take(count).copied().collect();
    stream::iter(tickets).for_each_concurrent(LOOKED_FOR, look).await;
}

fn publish_again(shared: &Shared, group: u64) {
    if shared.mail(group, Mail::TicketLost) {
        shared.metrics.cluster.republished.inc();
    }
}
