//! Commands of gateways, and reports to them.

use std::{collections::HashMap, sync::Arc};

use async_nats::Subscriber;
use futures_util::{StreamExt, future::join_all};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{
    runs::{Entry, Run},
    shared::Shared,
};
use crate::cluster::{
    broker::NoAnswer,
    messages::{Beat, BeatAnswer, Control, ControlAnswer, ControlCommand, decode, encode},
};

/// Reports in a row to a gateway without a connection, after which its jobs are stopped.
const GONE: u32 = 2;

/// Answers commands until the connection ends.
pub(super) async fn serve(shared: Arc<Shared>, mut commands: Subscriber) {
    while let Some(message) = commands.next().await {
        match decode::<Control>(&message.payload) {
            Ok(control) => {
                let answer = obey(&shared, control);
                shared.broker.answer(&message, encode(&answer)).await;
            }
            Err(error) => tracing::warn!("command ignored: {error}"),
        }
    }
}

fn obey(shared: &Shared, control: Control) -> ControlAnswer {
    let Control { gateway, run: key, command } = control;
    let run = match shared.runs.get(&(gateway, key.job)) {
        Some(Entry::Run(run)) if run.key == key => run,
        // Its grant is on the way.
        Some(Entry::Claiming) => return ControlAnswer::Running { next: 0 },
        _ => return ControlAnswer::Unknown,
    };
    match command {
        ControlCommand::Cancel(jobs) => {
            let cancels = jobs.into_iter().filter_map(|job| run.cancels.get(usize::from(job)));
            cancels.for_each(CancellationToken::cancel);
        }
        ControlCommand::Probe => {}
        ControlCommand::Replay(from) => run.log.replay(from),
    }
    ControlAnswer::Running { next: run.log.next_index() }
}

/// Reports to every gateway whose jobs run here, and stops those of gateways that have gone.
pub(super) async fn send_beats(shared: Arc<Shared>) {
    let mut tick = interval(shared.options.beat);
    let mut absent: HashMap<String, u32> = HashMap::new();
    loop {
        tick.tick().await;
        let runs = shared.runs.by_gateway();
        absent.retain(|gateway, _| runs.contains_key(gateway));
        let answers =
            runs.iter().map(async |(gateway, runs)| (gateway, runs, beat(&shared, gateway, runs).await));
        for (gateway, runs, answer) in join_all(answers).await {
            match answer {
                Ok(answer) => {
                    absent.remove(gateway);
                    runs.iter().filter(|run| answer.stop.contains(&run.key)).for_each(Run::stop);
                }
                // A gateway takes its connection up again after this node, when the broker was away.
                Err(NoAnswer::NoResponders) if is_settled(&shared) => {
                    let count = absent.entry(gateway.clone()).or_default();
                    *count += 1;
                    if *count >= GONE {
                        tracing::warn!(
                            event = "gateway_gone",
                            gateway,
                            "a gateway has gone; its requests are stopped"
                        );
                        shared.metrics.cluster.orphaned.inc_by(runs.len() as u64);
                        runs.iter().for_each(Run::stop);
                    }
                }
                Err(_) => {}
            }
        }
    }
}

async fn beat(shared: &Shared, gateway: &str, runs: &[Run]) -> Result<BeatAnswer, NoAnswer> {
    let subject = shared.broker.subjects.gateway(gateway, "beat");
    let runs = runs.iter().map(|run| (run.key.clone(), run.log.next_index())).collect();
    let beat = Beat { node: shared.options.id.clone(), runs };
    let answer = shared.broker.request(&subject, encode(&beat), shared.options.beat).await?;
    Ok(decode(&answer.payload).unwrap_or_default())
}

/// Whether all processes have had the time to connect again.
fn is_settled(shared: &Shared) -> bool {
    shared.broker.connected_since().is_some_and(|since| since.elapsed() > shared.options.lost)
}
