//! Load generator for servers with OpenAI's API.
//!
//! Latencies are measured from the scheduled send time of a request. In an open loop the schedule does not depend on the
//! answers, so a server that falls behind cannot hide it (coordinated omission). In a closed loop each client sends its next
//! request after the previous answer.

mod lengths;
mod plan;
mod plot;
mod report;
mod result;
mod timed_request;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use self::timed_request::timed_request;
pub use self::{
    lengths::Lengths,
    plan::{Api, Pace, Plan, Prompts},
    plot::{LengthCost, lengths_svg, svg},
    report::{comparison, table},
    result::{Heading, Limits, LoadResult, Summary},
    timed_request::Outcome,
};
use crate::client::Client;

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// After this number of requests.
    Requests(u64),
    /// After this time; running answers are waited for.
    Elapsed(Duration),
}

/// Measurements of a run.
#[derive(Debug)]
pub struct Run {
    /// In the order in which the answers ended.
    pub outcomes: Vec<Outcome>,
    /// Time from the first request to the last answer.
    pub took: Duration,
}

/// Sends requests until `until`. Before that, `warm_up` requests are sent one after another and not measured. `report` is called with the
/// number of finished requests.
pub async fn run(
    client: &Client,
    plan: &Arc<Plan>,
    warm_up: u64,
    until: Until,
    report: impl FnMut(usize),
) -> Run {
    for number in 0..warm_up {
        let now = Instant::now();
        // Other prompts than the measured ones, which would otherwise be in the server's prefix cache.
        timed_request(client, plan.api, &plan.body(u64::MAX - number), now, now).await;
    }
    let asker = Asker { client: client.clone(), plan: Arc::clone(plan), until, began: Instant::now() };
    let outcomes = match plan.pace {
        Pace::Closed { clients } => closed(&asker, clients, report).await,
        Pace::Open { rate } => open(&asker, rate, report).await,
    };
    Run { outcomes, took: asker.began.elapsed() }
}

/// Shared by all requests of a run.
#[derive(Clone)]
struct Asker {
    client: Client,
    plan: Arc<Plan>,
    until: Until,
    began: Instant,
}

impl Asker {
    async fn ask(&self, number: u64, due: Instant) -> Outcome {
        timed_request(&self.client, self.plan.api, &self.plan.body(number), self.began, due).await
    }

    /// Whether the run ends before request `number`.
    fn is_over(&self, number: u64, elapsed: Duration) -> bool {
        match self.until {
            Until::Requests(requests) => number >= requests,
            Until::Elapsed(max) => elapsed >= max,
        }
    }
}

/// Closed loop: each client sends its next request after the previous answer.
async fn closed(asker: &Asker, clients: usize, mut report: impl FnMut(usize)) -> Vec<Outcome> {
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
        report(outcomes.len());
    }
    outcomes
}

/// Open loop: requests are sent on schedule.
async fn open(asker: &Asker, rate: f64, mut report: impl FnMut(usize)) -> Vec<Outcome> {
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
                    report(outcomes.len());
                }
            }
        }
        let asker = asker.clone();
        asking.spawn(async move { asker.ask(number, due).await });
    }
    while let Some(ended) = asking.join_next().await {
        // The tasks neither panic nor are cancelled.
        if let Ok(outcome) = ended {
            outcomes.push(outcome);
            report(outcomes.len());
        }
    }
    outcomes
}
