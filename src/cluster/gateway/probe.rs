//! Asks a node whether it still runs a job, and passes it commands.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    mail::{Mail, Probed},
    shared::Shared,
};
use crate::cluster::{
    broker::NoAnswer,
    messages::{Control, ControlCommand, NodeAnswer, NodeRequest, RunKey, decode, encode},
};

/// Pause before a node that the broker does not know is asked once more: it may just be reconnecting.
const ONCE_MORE: Duration = Duration::from_millis(30);

/// Sends a command to a node; the answer becomes mail to the owner.
pub(super) fn send(shared: &Arc<Shared>, node: &str, run: RunKey, command: ControlCommand) {
    let (shared, node) = (Arc::clone(shared), node.to_owned());
    tokio::spawn(async move {
        let probed = ask(&shared, &node, &run, command).await;
        shared.mail(run.job, Mail::Probed(run, probed));
    });
}

async fn ask(shared: &Shared, node: &str, run: &RunKey, command: ControlCommand) -> Probed {
    let subject = shared.broker.subjects.control(node);
    let control = Control { gateway: shared.options.id.clone(), run: run.clone(), command };
    let request = encode(&NodeRequest::Run(control));
    let limit = shared.options.lost;
    let mut answer = shared.broker.request(&subject, request.clone(), limit).await;
    if matches!(answer, Err(NoAnswer::NoResponders)) {
        sleep(ONCE_MORE).await;
        answer = shared.broker.request(&subject, request.clone(), limit).await;
    }
    match answer {
        Ok(message) => match decode(&message.payload) {
            Ok(NodeAnswer::Running { next }) => Probed::Running(next),
            Ok(NodeAnswer::Unknown) => Probed::Unknown,
            Ok(_) | Err(_) => Probed::Silent,
        },
        Err(NoAnswer::NoResponders) => Probed::Absent,
        Err(NoAnswer::Late) => Probed::Silent,
    }
}
