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

use tokio::{sync::mpsc, task::JoinSet};

pub use self::{
    ask::Outcome,
    lengths::Lengths,
    plan::{Api, Pace, Plan, Prompts},
    plot::{LengthCost, lengths_svg, svg},
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
    let asker = Asker { client: client.clone(), plan: Arc::clone(plan), until, began: Instant::now() };
    let outcomes = match plan.pace {
        Pace::Closed { clients } => closed(&asker, clients, tell).await,
        Pace::Open { rate } => open(&asker, rate, tell).await,
    };
    Run { outcomes, took: asker.began.elapsed() }
}

/// What all requests of a run share.
#[derive(Clone)]
struct Asker {
    client: Client,
    plan: Arc<Plan>,
    until: Until,
    began: Instant,
}

impl Asker {
    async fn ask(&self, number: u64, due: Instant) -> Outcome {
        ask::ask(&self.client, self.plan.api, &self.plan.body(number), self.began, due).await
    }

    /// Whether request `number` is one too many, or `elapsed` is too late for it.
    fn is_over(&self, number: u64, elapsed: Duration) -> bool {
        match self.until {
            Until::Requests(requests) => number >= requests,
            Until::Elapsed(most) => elapsed >= most,
        }
    }
}

/// Clients that ask again when they have their answer.
async fn closed(asker: &Asker, clients: usize, mut tell: impl FnMut(usize)) -> Vec<Outcome> {
    let next = Arc::new(AtomicU64::new(0));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        let (asker, next, sender) = (asker.clone(), Arc::clone(&next), sender.clone());
        asking.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if asker.is_over(number, asker.began.elapsed()) {
                    return;
                }
                if sender.send(asker.ask(number, Instant::now()).await).is_err() {
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
async fn open(asker: &Asker, rate: f64, mut tell: impl FnMut(usize)) -> Vec<Outcome> {
    let (mut asking, mut outcomes) = (JoinSet::new(), Vec::new());
    for (number, at) in (0..).zip(asker.plan.moments(rate)) {
        if asker.is_over(number, at) {
            break;
        }
        let Some(due) = asker.began.checked_add(at) else { break };
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
        let asker = asker.clone();
        asking.spawn(async move { asker.ask(number, due).await });
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
