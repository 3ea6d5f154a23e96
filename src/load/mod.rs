//! A load generator for servers that speak OpenAI's language: requests as planned, waits as a client has them.
//!
//! Waits count from the moment at which a request was to be sent, not from when this program came to it. In an open
//! loop the moments do not depend on the answers, so a server that falls behind shows it (what is otherwise hidden
//! is known as coordinated omission). In a closed loop they do, as those of a few patient people.

mod ask;
mod lengths;
mod plan;
mod plot;
mod report;
mod result;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

pub use self::{
    ask::Outcome,
    lengths::Lengths,
    plan::{Api, Pace, Plan, Prompts},
    plot::svg,
    report::{comparison, table},
    result::{Heading, Limits, LoadResult, Summary},
};
use crate::client::Client;

/// When it is enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// So many requests have been sent.
    Requests(u64),
    /// So much time has passed; answers that are under way are waited for.
    Elapsed(Duration),
}

/// What was measured.
#[derive(Debug)]
pub struct Run {
    /// In the order in which they ended.
    pub outcomes: Vec<Outcome>,
    /// From the first request to the last answer.
    pub took: Duration,
}

/// Asks until it is enough. `warm_up` requests are sent one after another before, and not counted; `tell` is told how
/// many have ended.
pub async fn run(
    client: &Client,
    plan: &Arc<Plan>,
    warm_up: u64,
    until: Until,
    tell: impl FnMut(usize),
) -> Run {
    for number in 0..warm_up {
        let now = Instant::now();
        // Other requests than those that are measured, which a server could know from here.
        ask::ask(client, plan.api, &plan.body(u64::MAX - number), now, now).await;
    }
    let began = Instant::now();
    let outcomes = match plan.pace {
        Pace::Closed { clients } => closed(client, plan, clients, until, began, tell).await,
        Pace::Open { rate } => open(client, plan, rate, until, began, tell).await,
    };
    Run { outcomes, took: began.elapsed() }
}

/// Clients that ask again when they have their answer.
async fn closed(
    client: &Client,
    plan: &Arc<Plan>,
    clients: usize,
    until: Until,
    began: Instant,
    mut tell: impl FnMut(usize),
) -> Vec<Outcome> {
    let next = Arc::new(AtomicU64::new(0));
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        let (client, plan, next, sender) =
            (client.clone(), Arc::clone(plan), Arc::clone(&next), sender.clone());
        asking.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if is_over(until, number, began.elapsed()) {
                    return;
                }
                let body = plan.body(number);
                let outcome = ask::ask(&client, plan.api, &body, began, Instant::now()).await;
                if sender.send(outcome).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut outcomes = Vec::new();
    while let Some(outcome) = receiver.recv().await {
        outcomes.push(outcome);
        tell(outcomes.len());
    }
    outcomes
}

/// Requests at moments of their own.
async fn open(
    client: &Client,
    plan: &Arc<Plan>,
    rate: f64,
    until: Until,
    began: Instant,
    mut tell: impl FnMut(usize),
) -> Vec<Outcome> {
    let (mut asking, mut outcomes) = (JoinSet::new(), Vec::new());
    for (number, at) in (0..).zip(plan.moments(rate)) {
        if is_over(until, number, at) {
            break;
        }
        let Some(due) = began.checked_add(at) else { break };
        let body = plan.body(number);
        let mut sleep = std::pin::pin!(tokio::time::sleep_until(due.into()));
        loop {
            tokio::select! {
                biased;
                () = &mut sleep => break,
                Some(Ok(outcome)) = asking.join_next() => {
                    outcomes.push(outcome);
                    tell(outcomes.len());
                }
            }
        }
        let (client, plan) = (client.clone(), Arc::clone(plan));
        asking.spawn(async move { ask::ask(&client, plan.api, &body, began, due).await });
    }
    while let Some(ended) = asking.join_next().await {
        // A task of ours neither panics nor is cancelled.
        if let Ok(outcome) = ended {
            outcomes.push(outcome);
            tell(outcomes.len());
        }
    }
    outcomes
}

fn is_over(until: Until, number: u64, elapsed: Duration) -> bool {
    match until {
        Until::Requests(requests) => number >= requests,
        Until::Elapsed(most) => elapsed >= most,
    }
}
