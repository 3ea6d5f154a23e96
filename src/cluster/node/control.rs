//! Requests of gateways, and reports to them.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Message, Subscriber};
use futures_util::{StreamExt, future::join_all};
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use super::{
    claim,
    runs::{Entry, Run},
    shared::Shared,
};
use crate::{
    cluster::{
        broker::NoAnswer,
        messages::{
            Beat, BeatAnswer, Control, ControlCommand, NodeAnswer, NodeRequest, Operation, RunReport, decode,
            encode,
        },
    },
    job::Command,
};

/// Reports in a row to a gateway without a connection, after which its jobs are stopped.
const GONE: u32 = 2;

/// A gateway that answers no report for this long is taken for gone too: the NATS server notices only after minutes that a machine
/// was switched off. If it comes back, it has its jobs continued.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// Answers requests until the connection ends.
pub(super) async fn serve(shared: Arc<Shared>, mut requests: Subscriber) {
    while let Some(message) = requests.next().await {
        let answer = match decode::<NodeRequest>(&message.payload) {
            Ok(NodeRequest::Run(control)) => obey(&shared, control),
            Ok(NodeRequest::Offer { gateway, job, wait_ms }) => consider(&shared, gateway, job, wait_ms),
            Ok(NodeRequest::Operate(operation)) => {
                tokio::spawn(operate(Arc::clone(&shared), message, operation));
                continue;
            }
            Err(error) => {
                tracing::warn!("request of a gateway not understood: {error}");
                NodeAnswer::Unknown
            }
        };
        shared.broker.answer(&message, encode(&answer)).await;
    }
}

fn obey(shared: &Shared, control: Control) -> NodeAnswer {
    let Control { gateway, run: key, command } = control;
    let run = match shared.runs.get(&(gateway, key.job)) {
        Some(Entry::Run(run)) if run.key == key => run,
        // Its grant is on the way.
        Some(Entry::Claiming) => return NodeAnswer::Running { next: 0 },
        _ => return NodeAnswer::Unknown,
    };
    match command {
        ControlCommand::Cancel(jobs) => {
            let cancels = jobs.into_iter().filter_map(|job| run.cancels.get(usize::from(job)));
            cancels.for_each(CancellationToken::cancel);
        }
        ControlCommand::Probe => {}
        ControlCommand::Replay(from) => run.log.replay(from),
    }
    NodeAnswer::Running { next: run.log.next_index() }
}

/// Takes an offered job now, or keeps the offer until a slot is free.
fn consider(shared: &Arc<Shared>, gateway: String, job: u64, wait_ms: u64) -> NodeAnswer {
    let key = (gateway, job);
    if shared.free_slots() > 0 && claim::start_offered(shared, &key) {
        return NodeAnswer::Accepted;
    }
    let until = Instant::now().checked_add(Duration::from_millis(wait_ms));
    match until.filter(|_| wait_ms > 0 && !shared.is_draining()) {
        Some(until) if shared.offers.keep(key, until) => NodeAnswer::Kept,
        _ => NodeAnswer::Refused,
    }
}

async fn operate(shared: Arc<Shared>, message: Message, operation: Operation) {
    let command = match operation {
        Operation::Load { model, keep_alive } => Some(Command::Load { model, keep_alive }),
        Operation::Unload { model } => Some(Command::Unload { model }),
        Operation::Trim => Some(Command::Trim),
        Operation::Drain => None,
    };
    let outcomes = match command {
        Some(command) => (shared.operators.command)(command).await,
        None => {
            tracing::info!(event = "drained_by_gateway", "a gateway stops this node");
            (shared.operators.drain)();
            Vec::new()
        }
    };
    shared.broker.answer(&message, encode(&NodeAnswer::Operated(outcomes))).await;
}

/// Reports to every gateway whose jobs run here, and stops those of gateways that have gone.
pub(super) async fn send_beats(shared: Arc<Shared>) {
    let mut tick = interval(shared.options.beat);
    let mut silent: HashMap<String, Silence> = HashMap::new();
    loop {
        tick.tick().await;
        let runs = shared.runs.by_gateway();
        silent.retain(|gateway, _| runs.contains_key(gateway));
        let answers =
            runs.iter().map(async |(gateway, runs)| (gateway, runs, beat(&shared, gateway, runs).await));
        for (gateway, runs, answer) in join_all(answers).await {
            match answer {
                Ok(answer) => {
                    silent.remove(gateway);
                    runs.iter().filter(|run| answer.stop.contains(&run.key)).for_each(Run::stop);
                }
                // A gateway takes its connection up again after this node, when the broker was away.
                Err(error) if is_settled(&shared) => {
                    if silent.entry(gateway.clone()).or_default().is_over(error) {
                        tracing::warn!(
                            event = "gateway_gone",
                            gateway,
                            "a gateway has gone; its requests are stopped"
                        );
                        shared.metrics.cluster.orphaned.inc_by(runs.len() as u64);
                        runs.iter().for_each(Run::stop);
                    }
                }
                Err(_) => drop(silent.remove(gateway)),
            }
        }
    }
}

/// Reports in a row that a gateway did not answer.
#[derive(Debug)]
struct Silence {
    since: Instant,
    absent: u32,
}

impl Default for Silence {
    fn default() -> Self {
        Self { since: Instant::now(), absent: 0 }
    }
}

impl Silence {
    /// Notes one more; whether the gateway is taken for gone.
    fn is_over(&mut self, error: NoAnswer) -> bool {
        self.absent = if error == NoAnswer::NoResponders { self.absent + 1 } else { 0 };
        self.absent >= GONE || self.since.elapsed() >= UNREACHABLE
    }
}

async fn beat(shared: &Shared, gateway: &str, runs: &[Run]) -> Result<BeatAnswer, NoAnswer> {
    let subject = shared.broker.subjects.gateway(gateway, "beat");
    let report = |run: &Run| RunReport {
        run: run.key.clone(),
        next: run.log.next_index(),
        slot: run.slot.load(Ordering::Relaxed),
    };
    let beat = Beat { node: shared.options.id.clone(), runs: runs.iter().map(report).collect() };
    let answer = shared.broker.request(&subject, encode(&beat), shared.options.beat).await?;
    Ok(decode(&answer.payload).unwrap_or_default())
}

/// Whether all processes have had the time to connect again.
fn is_settled(shared: &Shared) -> bool {
    shared.broker.connected_since().is_some_and(|since| since.elapsed() > shared.options.lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gateway_without_a_connection_is_gone_soon_and_a_silent_one_later() {
        let mut silence = Silence::default();
        assert!(!silence.is_over(NoAnswer::NoResponders));
        assert!(!silence.is_over(NoAnswer::Late), "it may be connecting");
        assert!(!silence.is_over(NoAnswer::NoResponders));
        assert!(silence.is_over(NoAnswer::NoResponders));
        let mut silence = Silence::default();
        assert!(!silence.is_over(NoAnswer::Late));
        tokio::time::advance(UNREACHABLE).await;
        assert!(silence.is_over(NoAnswer::Late));
    }
}
