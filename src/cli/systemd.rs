//! What is told to the service manager that started the server, over the socket of its `NOTIFY_SOCKET`: that the model is
//! loaded, how it goes, and, if it watches, that the process lives. Without such a socket nothing is told.
//!
//! The signs of life come from the one thread that supervises workers and keeps the queue, so a process that still
//! runs but has come to a halt is restarted. A worker that hangs is not this watchdog's business: it is replaced
//! from here.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};

use crate::job::Readiness;

/// Tells of every change, and gives signs of life twice in the time after which the manager would miss them.
pub(super) async fn tell(mut readiness: watch::Receiver<Readiness>) {
    let mut signs = sd_notify::watchdog_enabled().map(every);
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
                () = next(&mut signs) => send(&[NotifyState::Watchdog]),
                changed = readiness.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            }
        }
    }
}

/// Tells that no further request is taken.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn every(patience: Duration) -> Interval {
    let mut signs = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    signs
}

async fn next(signs: &mut Option<Interval>) {
    match signs {
        Some(signs) => drop(signs.tick().await),
        None => std::future::pending().await,
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}
