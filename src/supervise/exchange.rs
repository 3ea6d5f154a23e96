//! What is said to a worker and what it has to answer, frame by frame and each within its time.

use std::{fmt, time::Duration};

use tokio::time::timeout;

use super::{WorkerCommand, policy, process::Process, restored::Prompt, watchdog::Budgets};
use crate::{
    job::{Failure, Memory, ModelId, ModelReport, RuntimeReport},
    wire::{Down, PROTOCOL, Up, WireError},
};

/// A worker that is of no use any more: why in a word, for the metrics, and in a sentence.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) label: &'static str,
    pub(super) reason: String,
    /// The last line on its stderr, for the log.
    last_words: Option<String>,
}

/// As the log says it.
impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.last_words.as_ref().map_or(Ok(()), |words| write!(f, "; its last words: {words}"))
    }
}

impl Lost {
    pub(super) const fn new(label: &'static str, reason: String) -> Self {
        Self { label, reason, last_words: None }
    }

    pub(super) const fn hung(reason: String) -> Self {
        Self::new("hung", reason)
    }

    const fn protocol(reason: String) -> Self {
        Self::new("protocol", reason)
    }

    /// What a frame that nobody waits for means.
    pub(super) fn by(frame: Option<Result<Up, WireError>>) -> Self {
        match frame {
            None => Self::new("crashed", "it closed its pipe".into()),
            Some(Err(e)) => Self::protocol(e.to_string()),
            Some(Ok(other)) => Self::protocol(format!("it sent {other:?} out of turn")),
        }
    }

    /// Sees the worker off: it is killed if it may still live, and how it ended is the reason if it went by itself.
    pub(super) async fn see_off(mut self, mut worker: Process) -> Self {
        if matches!(self.label, "crashed" | "start_failed" | "poisoned") {
            let (how, last_words) = worker.ended().await;
            self.last_words = last_words;
            if self.label == "crashed" {
                self.reason = how;
            }
        } else {
            worker.kill().await;
        }
        self
    }
}

/// Sends a frame to a worker that is known to be alive: one that has been silent is pinged first, so that nothing waits
/// longer for one that hangs than for the answer to a ping.
pub(super) async fn send(worker: &mut Process, message: &Down, budgets: &Budgets) -> Result<(), Lost> {
    let is_silent = worker.silence().is_some_and(|silence| silence >= policy::IDLE);
    if is_silent && !worker.is_pinged() {
        send_unasked(worker, &Down::Ping, budgets).await?;
    }
    if worker.is_pinged() {
        match hear(worker, budgets.idle, "was idle").await? {
            Up::Pong => {}
            other => return Err(unexpected(&other, "was idle")),
        }
    }
    send_unasked(worker, message, budgets).await
}

/// Sends a frame whatever is known of the worker.
pub(super) async fn send_unasked(
    worker: &mut Process,
    message: &Down,
    budgets: &Budgets,
) -> Result<(), Lost> {
    let patience = budgets.pipe;
    match timeout(patience, worker.send(message)).await {
        Ok(sent) => sent.map_err(|e| Lost::new("crashed", e.to_string())),
        Err(_) => {
            Err(Lost::hung(format!("it took no frame off its pipe for {:.1} s", patience.as_secs_f64())))
        }
    }
}

/// Tells a new worker how to run.
pub(super) async fn start(worker: &mut Process, command: &WorkerCommand) -> Result<RuntimeReport, Lost> {
    let budgets = &command.budgets;
    send(worker, &Down::Start(command.spec.clone()), budgets).await?;
    let doing = "started";
    match hear(worker, budgets.load, doing).await? {
        Up::Hello { protocol: PROTOCOL } => {}
        Up::Hello { protocol } => {
            return Err(Lost::protocol(format!(
                "the worker speaks protocol {protocol}, this server {PROTOCOL}: the binary was replaced while the server \
                 ran; restart it"
            )));
        }
        other => return Err(unexpected(&other, doing)),
    }
    match hear(worker, budgets.load, doing).await? {
        Up::Started(report) => Ok(report),
        Up::StartFailed { message } => Err(Lost::new("start_failed", message)),
        other => Err(unexpected(&other, doing)),
    }
}

/// Loads a model. The inner error is the model's: why it cannot be loaded, by a worker that goes on.
pub(super) async fn load(
    worker: &mut Process,
    command: &WorkerCommand,
    model: &ModelId,
) -> Result<Result<ModelReport, String>, Lost> {
    let Some(place) = command.place(model) else { return Ok(Err("there is no such model here".into())) };
    let budgets = &command.budgets;
    let (dir, draft) = (place.dir.clone(), place.draft.clone());
    send(worker, &Down::Load { model: model.clone(), dir, draft }, budgets).await?;
    let doing = format!("loaded {model}");
    match hear(worker, budgets.load, &doing).await? {
        Up::Loaded(loaded) if loaded == *model => {}
        Up::LoadFailed { message, .. } => return Ok(Err(message)),
        other => return Err(unexpected(&other, &doing)),
    }
    let doing = format!("ran {model} for the first time");
    match hear(worker, budgets.warm_up, &doing).await? {
        Up::Ready { report, .. } => Ok(Ok(report)),
        Up::LoadFailed { message, .. } => Ok(Err(message)),
        other => Err(unexpected(&other, &doing)),
    }
}

/// Gives a model's memory back; what is held then.
pub(super) async fn unload(
    worker: &mut Process,
    command: &WorkerCommand,
    model: &ModelId,
) -> Result<Memory, Lost> {
    send(worker, &Down::Unload(model.clone()), &command.budgets).await?;
    let doing = format!("unloaded {model}");
    match hear(worker, command.budgets.warm_up, &doing).await? {
        Up::Unloaded { memory, .. } => Ok(memory),
        other => Err(unexpected(&other, &doing)),
    }
}

/// Gives back what no job needs; what is held then.
pub(super) async fn trim(worker: &mut Process, command: &WorkerCommand) -> Result<Memory, Lost> {
    send(worker, &Down::Trim, &command.budgets).await?;
    let doing = "gave memory back";
    match hear(worker, command.budgets.warm_up, doing).await? {
        Up::Trimmed { memory } => Ok(memory),
        other => Err(unexpected(&other, doing)),
    }
}

/// Has a saved prompt kept for jobs that begin like it; what is held then. The inner error is the file's own. It may be as
/// large as a model, and has as long.
pub(super) async fn restore(
    worker: &mut Process,
    command: &WorkerCommand,
    prompt: &Prompt,
) -> Result<Result<Memory, Failure>, Lost> {
    let Prompt { model, name, file, salt } = prompt.clone();
    let doing = format!("restored the saved prompt {name}");
    let order = Down::Restore { model, name, file, salt };
    send(worker, &order, &command.budgets).await?;
    match hear(worker, command.budgets.load, &doing).await? {
        Up::Restored { memory } => Ok(Ok(memory)),
        Up::NotRestored { failure } => Ok(Err(failure)),
        other => Err(unexpected(&other, &doing)),
    }
}

/// Has a saved prompt let go of; what is held then.
pub(super) async fn forget(
    worker: &mut Process,
    command: &WorkerCommand,
    name: String,
) -> Result<Memory, Lost> {
    send(worker, &Down::Forget(name), &command.budgets).await?;
    let doing = "let go of a saved prompt";
    match hear(worker, command.budgets.warm_up, doing).await? {
        Up::Forgotten { memory } => Ok(memory),
        other => Err(unexpected(&other, doing)),
    }
}

async fn hear(worker: &mut Process, patience: Duration, doing: &str) -> Result<Up, Lost> {
    let answer = async {
        loop {
            match worker.next().await {
                // Said before it was asked; the answer says what is held since.
                Some(Ok(Up::Held { .. })) => {}
                other => return other,
            }
        }
    };
    match timeout(patience, answer).await {
        Ok(Some(Ok(frame))) => Ok(frame),
        Ok(other) => Err(Lost::by(other)),
        Err(_) => Err(Lost::hung(format!("no word for {:.1} s while it {doing}", patience.as_secs_f64()))),
    }
}

fn unexpected(frame: &Up, doing: &str) -> Lost {
    Lost::protocol(format!("unexpected {frame:?} while it {doing}"))
}
