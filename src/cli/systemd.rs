//! Notifications to systemd over `NOTIFY_SOCKET`: readiness, status, and watchdog pings if the unit has a watchdog. Without
//! the socket nothing is sent.
//!
//! The pings come from the thread that runs queue and supervisor, so systemd restarts a process whose event loop hangs. A
//! worker that hangs is replaced by the supervisor instead.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};

use crate::job::Readiness;

/// Sends every change of state, and two watchdog pings per timeout.
pub(super) async fn notify_readiness(mut readiness: watch::Receiver<Readiness>) {
    let mut pings = sd_notify::watchdog_enabled().map(every);
    let mut was_ready = false;
    loop {
        let state = readiness.borrow_and_update().as_str();
        if state == "ready" && !was_ready {
            was_ready = true;
            send(&[NotifyState::Ready]);
        }
        send(&[NotifyState::Status(state)]);
        loop {
            tokio::select! {
                () = next(&mut pings) => send(&[NotifyState::Watchdog]),
                changed = readiness.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            }
        }
    }
}

/// Announces the shutdown.
pub(super) fn notify_stopping() {
    send(&[NotifyState::Stopping]);
}

fn every(timeout: Duration) -> Interval {
    let mut pings = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

async fn next(pings: &mut Option<Interval>) {
    match pings {
        Some(pings) => drop(pings.tick().await),
        None => std::future::pending().await,
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
