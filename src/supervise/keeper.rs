//! The task that keeps a worker alive and runs one job at a time on it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    WorkerCommand,
    policy::{self, Action, AfterLoss, End},
    process::Process,
    watchdog::{Budgets, Heard, Watch, Watchdog},
};
use crate::{
    job::{
        Event, Failure, Finish, FinishReason, Job, JobId, Memory, MemoryReport, Readiness, ReadyReport,
        Timings, Usage,
    },
    metrics::{ExitReason, MemoryKind, Metrics},
    units::Bytes,
    wire::{Down, PROTOCOL, Up, WireError},
};

/// A job, where its events go, and where its end is told.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) job: Job,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) reply: oneshot::Sender<Result<Finish, Failure>>,
    pub(super) history: History,
}

/// What has become of a job so far.
#[derive(Debug, Default)]
pub(super) struct History {
    began: Option<Instant>,
    first_token: Option<Instant>,
}

impl History {
    /// Times as the client saw them, for a job that more than one worker had; each worker knows its own part alone.
    fn correct(&self, lost: u32, timings: &mut Timings) {
        let (Some(began), true) = (self.began, lost > 0) else { return };
        let first_token = self.first_token.unwrap_or_else(Instant::now);
        timings.prefill = first_token - began;
        timings.decode = first_token.elapsed();
        timings.resumed = lost;
    }
}

pub(super) struct Keeper {
    command: WorkerCommand,
    watchdog: Watchdog,
    metrics: Arc<Metrics>,
    inbox: Inbox,
    readiness: watch::Sender<Readiness>,
    stop: CancellationToken,
    ever_ready: bool,
    failures: u32,
}

/// Where jobs arrive, with room for one that waits for a worker.
struct Inbox {
    requests: mpsc::Receiver<Request>,
    waiting: Option<Request>,
}

impl Inbox {
    /// Takes a job into the waiting place, or answers the one there when it is cancelled. Never ends while there is
    /// nothing to do; safe to abandon.
    async fn receive(&mut self) {
        if let Some(waiting) = &self.waiting {
            waiting.cancel.cancelled().await;
            if let Some(Request { reply, .. }) = self.waiting.take() {
                let _ = reply.send(Ok(never_started()));
            }
            return;
        }
        match self.requests.recv().await {
            Some(request) => self.waiting = Some(request),
            // All handles are gone: only `stop` can follow.
            None => std::future::pending().await,
        }
    }
}

/// How the life of one worker ended.
enum Life {
    /// As it was told to.
    Stopped,
    /// Of its own.
    Ended { end: End, label: &'static str, reason: String },
}

/// How a job ended for the worker that ran it.
enum AfterJob {
    Ready,
    Lost { label: &'static str, reason: String },
}

impl Keeper {
    pub(super) fn new(
        command: WorkerCommand,
        metrics: Arc<Metrics>,
        requests: mpsc::Receiver<Request>,
        readiness: watch::Sender<Readiness>,
        stop: CancellationToken,
    ) -> Self {
        let inbox = Inbox { requests, waiting: None };
        let watchdog = Watchdog::new(command.budgets);
        Self { command, watchdog, metrics, inbox, readiness, stop, ever_ready: false, failures: 0 }
    }

    /// Runs workers, one after another, until told to stop.
    pub(super) async fn keep(mut self) {
        while let Life::Ended { end, label, reason } = self.live().await {
            self.count_exit(label);
            self.failures = self.failures.saturating_add(1);
            tracing::error!("the worker is gone: {reason}");
            match policy::after(end, self.ever_ready, self.failures) {
                Action::RestartAfter(wait) => self.wait(wait, reason).await,
                Action::GiveUp => return self.give_up(reason).await,
            }
            if self.stop.is_cancelled() {
                break;
            }
        }
        self.readiness.send_replace(Readiness::Stopping);
        self.count_exit("shutdown");
    }

    /// One worker, from its start to its end.
    async fn live(&mut self) -> Life {
        let ended = |end, label, reason| Life::Ended { end, label, reason };
        let mut worker = match Process::start(&self.command) {
            Ok(worker) => worker,
            Err(e) => {
                let reason = format!("{} cannot be started: {e}", self.command.program.display());
                return ended(End::BeforeReady, "exited", reason);
            }
        };
        self.metrics.worker_starts.inc();
        if worker.send(&Down::Load(self.command.load.clone())).await.is_err() {
            return ended(End::BeforeReady, "exited", worker.ended().await);
        }
        match self.load(&mut worker).await {
            Loading::Ready(report) => self.now_ready(report),
            Loading::Stop => {
                worker.kill().await;
                return Life::Stopped;
            }
            Loading::Failed { message } => return ended(End::LoadFailed, "load_failed", message),
            Loading::Protocol { message } => {
                worker.kill().await;
                return ended(End::BeforeReady, "protocol", message);
            }
            Loading::Hung { message } => {
                worker.kill().await;
                return ended(End::BeforeReady, "hung", message);
            }
            Loading::Gone => return ended(End::BeforeReady, "crashed", worker.ended().await),
        }
        self.serve(worker).await
    }

    /// Waits until the worker has loaded the model.
    async fn load(&mut self, worker: &mut Process) -> Loading {
        let Budgets { load, warm_up, .. } = self.watchdog.budgets();
        let (mut doing, mut budget, mut since) = ("loaded the model", load, Instant::now());
        loop {
            let frame = tokio::select! {
                biased;
                frame = worker.next() => frame,
                () = self.stop.cancelled() => return Loading::Stop,
                () = sleep_until(since + budget) => {
                    let seconds = budget.as_secs_f64();
                    return Loading::Hung { message: format!("no word for {seconds:.1} s while it {doing}") };
                }
                () = self.inbox.receive() => continue,
            };
            match frame {
                Some(Ok(Up::Loaded)) => {
                    (doing, budget, since) = ("ran the model for the first time", warm_up, Instant::now())
                }
                Some(Ok(Up::Hello { protocol: PROTOCOL })) => {}
                Some(Ok(Up::Hello { protocol })) => {
                    let message = format!(
                        "the worker speaks protocol {protocol}, this server {PROTOCOL}: the binary was replaced while the \
                         server ran; restart it"
                    );
                    return Loading::Protocol { message };
                }
                Some(Ok(Up::Ready(report))) => return Loading::Ready(report),
                Some(Ok(Up::LoadFailed { message })) => return Loading::Failed { message },
                Some(Ok(other)) => {
                    return Loading::Protocol { message: format!("unexpected {other:?} while loading") };
                }
                Some(Err(e)) => return Loading::Protocol { message: e.to_string() },
                None => return Loading::Gone,
            }
        }
    }

    fn now_ready(&mut self, report: ReadyReport) {
        tracing::info!(
            load_ms = u64::try_from(report.load_time.as_millis()).unwrap_or(u64::MAX),
            threads = report.threads,
            placement = ?report.placement,
            "the worker is ready: {} ({})",
            report.runtime,
            report.library.display()
        );
        self.ever_ready = true;
        self.metrics.worker_ready.set(1);
        self.metrics.model_load_seconds.set(report.load_time.as_secs_f64());
        self.show_memory(report.memory);
        self.readiness.send_replace(Readiness::Ready(report));
    }

    /// Runs jobs on a ready worker until it ends.
    async fn serve(&mut self, mut worker: Process) -> Life {
        let lost = loop {
            if let Some(request) = self.inbox.waiting.take() {
                match self.run(&mut worker, request).await {
                    AfterJob::Ready => continue,
                    AfterJob::Lost { label, reason } => break (label, reason),
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => {
                    worker.shut_down().await;
                    return Life::Stopped;
                }
                () = self.inbox.receive() => {}
                frame = worker.next() => break lost_by(frame),
            }
        };
        let (label, mut reason) = lost;
        if matches!(label, "protocol" | "hung") {
            worker.kill().await;
        } else {
            reason = worker.ended().await;
        }
        self.metrics.worker_ready.set(0);
        Life::Ended { end: End::AfterReady, label, reason }
    }

    async fn run(&mut self, worker: &mut Process, mut request: Request) -> AfterJob {
        if request.cancel.is_cancelled() {
            // Nobody may be left to hear it.
            let _ = request.reply.send(Ok(never_started()));
            return AfterJob::Ready;
        }
        request.history.began.get_or_insert_with(Instant::now);
        let chunk = self.command.load.prefill_chunk;
        let (mut end, after) = Self::converse(worker, &mut request, &mut self.watchdog, chunk).await;
        if let Err(Failure::WorkerLost { message }) = &mut end {
            request.job.lost += 1;
            match policy::after_loss(request.job.lost) {
                AfterLoss::Resume => {
                    self.metrics.jobs_resumed.inc();
                    tracing::warn!(
                        job = request.job.id.0,
                        tokens = request.job.answer.len(),
                        "its worker is gone; the next one goes on with it"
                    );
                    self.inbox.waiting = Some(request);
                    return after;
                }
                AfterLoss::Fail => {
                    *message =
                        format!("{} workers in a row ended while they ran it: {message}", request.job.lost);
                }
            }
        }
        if let Ok(finish) = &mut end {
            request.history.correct(request.job.lost, &mut finish.timings);
            self.failures = 0;
            self.show_memory(finish.memory.after);
            self.show("peak_resident", finish.memory.peak_resident);
        }
        let _ = request.reply.send(end);
        after
    }

    /// Sends a job and passes on what the worker says, until it has ended. Tokens are added to the job's answer, so that
    /// another worker can go on with it.
    async fn converse(
        worker: &mut Process,
        request: &mut Request,
        watchdog: &mut Watchdog,
        chunk: usize,
    ) -> (Result<Finish, Failure>, AfterJob) {
        let Request { job, events, cancel, history, .. } = request;
        let id = job.id;
        let mut cancelled = false;
        let mut watch = Watch::start(job.prompt.len() + job.answer.len(), chunk, Instant::now());
        let mut sent = send(worker, &Down::Generate(job.clone()), watchdog).await;
        loop {
            if let Err((label, reason)) = sent {
                return lost_job(label, reason);
            }
            let frame = tokio::select! {
                biased;
                frame = worker.next() => frame,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    sent = send(worker, &Down::Cancel(id), watchdog).await;
                    continue;
                }
                () = sleep_until(watch.deadline(watchdog)) => return lost_job("hung", watch.describe(watchdog)),
            };
            sent = Ok(());
            if let Some(Ok(said)) = &frame
                && let Some(heard) = heard_of(id, said)
            {
                watch.hear(heard, Instant::now(), watchdog);
                if let Up::Token { id: token, .. } = said {
                    job.answer.push(*token);
                    history.first_token.get_or_insert_with(Instant::now);
                }
            }
            if let Some(end) = hear(id, frame, events) {
                return end;
            }
        }
    }

    async fn wait(&mut self, wait: Duration, reason: String) {
        let state = if self.ever_ready && self.failures <= 2 {
            Readiness::Restarting { reason }
        } else if self.ever_ready {
            Readiness::Down { reason, retry_in: Some(wait) }
        } else {
            Readiness::Starting
        };
        self.readiness.send_replace(state);
        let over = sleep(wait);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.stop.cancelled() => return,
                () = self.inbox.receive() => {}
            }
        }
    }

    /// Answers every job with the reason until told to stop.
    async fn give_up(mut self, reason: String) {
        self.readiness.send_replace(Readiness::Down { reason: reason.clone(), retry_in: None });
        loop {
            if let Some(request) = self.inbox.waiting.take() {
                let _ = request.reply.send(Err(Failure::NoWorker { message: reason.clone() }));
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.inbox.receive() => {}
            }
        }
    }

    fn count_exit(&self, reason: &'static str) {
        self.metrics.worker_ready.set(0);
        self.metrics.worker_exits.get_or_create(&ExitReason { reason }).inc();
    }

    fn show_memory(&self, memory: Memory) {
        self.show("resident", memory.resident);
        self.show("anonymous", memory.anonymous);
    }

    fn show(&self, kind: &'static str, bytes: Option<Bytes>) {
        if let Some(bytes) = bytes {
            let gauge = self.metrics.memory.get_or_create(&MemoryKind { process: "worker", kind });
            gauge.set(i64::try_from(bytes.0).unwrap_or(i64::MAX));
        }
    }
}

/// Sends a frame; otherwise how the worker was lost.
async fn send(
    worker: &mut Process,
    message: &Down,
    watchdog: &Watchdog,
) -> Result<(), (&'static str, String)> {
    let patience = watchdog.budgets().pipe;
    match timeout(patience, worker.send(message)).await {
        Ok(sent) => sent.map_err(|e| ("crashed", e.to_string())),
        Err(_) => Err(("hung", format!("it took no frame off its pipe for {:.1} s", patience.as_secs_f64()))),
    }
}

/// What a frame tells the watchdog about the running job.
fn heard_of(running: JobId, frame: &Up) -> Option<Heard> {
    match frame {
        Up::Progress { job, done, .. } if *job == running => Some(Heard::Progress(*done)),
        Up::Token { job, .. } if *job == running => Some(Heard::Token),
        _ => None,
    }
}

/// What came of loading.
enum Loading {
    Ready(ReadyReport),
    Failed { message: String },
    Protocol { message: String },
    Hung { message: String },
    Gone,
    Stop,
}

/// What a frame that no state expects means: its label and why.
fn lost_by(frame: Option<Result<Up, WireError>>) -> (&'static str, String) {
    match frame {
        None => ("crashed", "it closed its pipe".into()),
        Some(Err(e)) => ("protocol", e.to_string()),
        Some(Ok(other)) => ("protocol", format!("it sent {other:?} out of turn")),
    }
}

/// Passes on what a frame says about the running job; its end, if it is that.
fn hear(
    running: JobId,
    frame: Option<Result<Up, WireError>>,
    events: &mpsc::UnboundedSender<Event>,
) -> Option<(Result<Finish, Failure>, AfterJob)> {
    // A listener who has left cancels the job by other means.
    match frame {
        Some(Ok(Up::Progress { job, done, total })) if job == running => {
            let _ = events.send(Event::Progress { done, total });
            None
        }
        Some(Ok(Up::Score { job, score })) if job == running => {
            let _ = events.send(Event::Score(score));
            None
        }
        Some(Ok(Up::Token { job, id })) if job == running => {
            let _ = events.send(Event::Token(id));
            None
        }
        Some(Ok(Up::Done { job, finish })) if job == running => Some((Ok(finish), AfterJob::Ready)),
        Some(Ok(Up::Failed { job, failure, poisoned })) if job == running => {
            let reason = format!("its device cannot be used any more: {failure}");
            let after = if poisoned { AfterJob::Lost { label: "poisoned", reason } } else { AfterJob::Ready };
            Some((Err(failure), after))
        }
        other => {
            let (label, reason) = lost_by(other);
            Some(lost_job(label, reason))
        }
    }
}

fn lost_job(label: &'static str, reason: String) -> (Result<Finish, Failure>, AfterJob) {
    (Err(Failure::WorkerLost { message: reason.clone() }), AfterJob::Lost { label, reason })
}

/// The end of a job that was cancelled before a worker saw it.
fn never_started() -> Finish {
    Finish {
        reason: FinishReason::Cancelled,
        usage: Usage::default(),
        timings: Timings::default(),
        memory: MemoryReport::default(),
    }
}
