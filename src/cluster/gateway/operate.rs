//! Commands of operators to all nodes.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::shared::Shared;
use crate::{
    cluster::messages::{NodeAnswer, NodeRequest, Operation, decode, encode},
    job::{Command, CommandOutcome, Failure, ModelId},
};

/// The caller has its own limit, and a node that goes away is noticed earlier.
const LIMIT: Duration = Duration::from_secs(3600);

/// Interval at which a gateway looks whether a node is still there.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a command on every node that serves its model; one outcome per device, at least one.
pub(super) async fn on_all_nodes(shared: &Arc<Shared>, command: Command) -> Vec<CommandOutcome> {
    let (operation, model) = match command {
        Command::Load { model, keep_alive } => {
            (Operation::Load { model: model.clone(), keep_alive }, Some(model))
        }
        Command::Unload { model } => (Operation::Unload { model: model.clone() }, Some(model)),
        Command::Trim => (Operation::Trim, None),
        // Saved prompts are files of one machine; a gateway has no store for them.
        Command::Restore(_) | Command::Forget { .. } => {
            return vec![failed(None, "prompts are saved on nodes")];
        }
    };
    let nodes = match &model {
        Some(model) => nodes_of(shared, model),
        None => shared.fleet.present(None),
    };
    let outcomes = nodes.iter().map(|node| operate(shared, node, operation.clone()));
    let outcomes: Vec<_> = join_all(outcomes).await.into_iter().flatten().collect();
    if outcomes.is_empty() { vec![failed(None, "no node serves the model")] } else { outcomes }
}

/// Tells a node to stop after its jobs; `false` if the node is unknown.
pub(super) async fn drain(shared: &Arc<Shared>, node: &str) -> bool {
    let is_known = shared.fleet.present(None).iter().any(|present| present == node);
    if is_known {
        operate(shared, node, Operation::Drain).await;
    }
    is_known
}

fn nodes_of(shared: &Shared, model: &ModelId) -> Vec<String> {
    shared.pools.get(model).map(|pool| shared.fleet.present(Some(pool.as_str()))).unwrap_or_default()
}

/// The outcomes on a node's devices, named by node and device.
async fn operate(shared: &Shared, node: &str, operation: Operation) -> Vec<CommandOutcome> {
    let subject = shared.broker.subjects.control(node);
    let answer = tokio::select! {
        answer = shared.broker.request(&subject, encode(&NodeRequest::Operate(operation)), LIMIT) => answer.ok(),
        () = gone(shared, node) => None,
    };
    let Some(answer) = answer else { return vec![failed(Some(node), "the node does not answer")] };
    match decode(&answer.payload) {
        Ok(NodeAnswer::Operated(outcomes)) => {
            let named = |CommandOutcome { device, outcome }| {
                let device = device.map(|device| format!("/{device}")).unwrap_or_default();
                CommandOutcome { device: Some(format!("{node}{device}")), outcome }
            };
            outcomes.into_iter().map(named).collect()
        }
        _ => vec![failed(Some(node), "the node does not know the command: upgrade it")],
    }
}

/// Waits until a node does not report any more.
async fn gone(shared: &Shared, node: &str) {
    while shared.fleet.present(None).iter().any(|present| present == node) {
        sleep(LOOK).await;
    }
}

fn failed(node: Option<&str>, reason: &str) -> CommandOutcome {
    let failure = Failure::NoWorker { message: reason.to_owned(), retry_in: None };
    CommandOutcome { device: node.map(str::to_owned), outcome: Err(failure) }
}
