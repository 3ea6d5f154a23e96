//! A slot: takes the jobs of a group from the queue, runs them, forwards their events, takes the next.

use std::{panic::AssertUnwindSafe, sync::Arc, time::SystemTime};

use futures_util::FutureExt;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, sleep_until},
};

use super::{
    estimate::{SlotUsage, Work},
    queue::QueuedJob,
    shared::Shared,
    snapshot::{FinishedJob, JobOutcome},
};
use crate::{
    job::{DraftCounts, EndReason, Event, Failure, Finish, GroupedJob, JobId, Step, Timings},
    metrics::{DraftSourceLabel, Metrics, PriorityLabel},
    otel::JobSpans,
    units::Tokens,
};

/// Runs the jobs of one slot until the queue is closed and empty.
pub(super) async fn serve<R, F>(shared: Arc<Shared>, slot: usize, mut run: R)
where
    R: FnMut(Vec<GroupedJob>, UnboundedSender<(JobId, Event)>) -> F + Send,
    F: Future<Output = Result<(), Failure>> + Send,
{
    loop {
        // Enabled before the queue is checked, so that no arrival in between is missed.
        let arrived = shared.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        match shared.take_next(slot) {
            Some(accepted) => {
                run_group(&shared, slot, &mut run, accepted).await;
                // Another slot may be able to take a job now, and no arrival would wake it.
                shared.arrived.notify_waiters();
            }
            None if shared.is_over() => return,
            None => arrived.await,
        }
    }
}

/// Fails waiting jobs when their deadline passes, and not only when a slot becomes free.
pub(super) async fn watch_deadlines(shared: Arc<Shared>) {
    loop {
        let next = shared.fail_overdue();
        tokio::select! {
            () = sleep_until_some(next) => {}
            () = shared.deadlines_changed.notified() => {}
        }
    }
}

pub(super) async fn run_group<R, F>(shared: &Shared, slot: usize, run: &mut R, accepted: Vec<QueuedJob>)
where
    R: FnMut(Vec<GroupedJob>, UnboundedSender<(JobId, Event)>) -> F + Send,
    F: Future<Output = Result<(), Failure>> + Send,
{
    let (sender, mut received) = unbounded_channel();
    let grouped =
        |accepted: &QueuedJob| GroupedJob { job: accepted.job.clone(), cancel: accepted.cancel.clone() };
    let jobs = accepted.iter().map(grouped).collect();
    // The call is inside, so that a panic before the first await is caught too.
    let work = AssertUnwindSafe(async { run(jobs, sender).await }).catch_unwind();
    tokio::pin!(work);
    let mut group = RunningGroup::start(shared, slot, accepted);
    let ended = loop {
        tokio::select! {
            biased;
            Some((id, event)) = received.recv() => group.handle(id, event),
            failure = group.deadline() => group.end_early(&failure),
            () = sleep_until_some(group.time_limit()) => group.stop_at_limit(),
            ended = &mut work => break ended,
        }
    };
    while let Ok((id, event)) = received.try_recv() {
        group.handle(id, event);
    }
    let failure = match ended {
        Ok(Ok(())) => Failure::WorkerLost { message: "the worker did not report how the job ended".into() },
        Ok(Err(failure)) => failure,
        Err(panic) => panicked(panic.as_ref()),
    };
    group.fail(&failure);
}

/// The jobs of a group that have not ended. They have the same deadlines and limits.
struct RunningGroup<'a> {
    jobs: Vec<RunningJob<'a>>,
}

impl<'a> RunningGroup<'a> {
    fn start(shared: &'a Shared, slot: usize, accepted: Vec<QueuedJob>) -> Self {
        let together = u32::try_from(accepted.len()).unwrap_or(u32::MAX);
        let start = |accepted| RunningJob::start(shared, slot, together, accepted);
        Self { jobs: accepted.into_iter().map(start).collect() }
    }

    fn handle(&mut self, id: JobId, event: Event) {
        let Some(at) = self.jobs.iter().position(|job| job.accepted.job.id == id) else { return };
        match event {
            Event::Done(finish) => self.jobs.swap_remove(at).end(Ok(finish)),
            Event::Failed(failure) => self.jobs.swap_remove(at).end(Err(failure)),
            event => self.jobs[at].handle(event),
        }
    }

    /// Waits until the jobs have to fail, and returns why.
    async fn deadline(&self) -> Failure {
        match self.jobs.iter().find(|job| !job.is_answered) {
            Some(job) => job.deadline().await,
            None => std::future::pending().await,
        }
    }

    fn end_early(&mut self, failure: &Failure) {
        let waiting = self.jobs.iter_mut().filter(|job| !job.is_answered);
        waiting.for_each(|job| job.end_early(failure.clone()));
    }

    /// When the time limit of the jobs expires, if they have one and it has not expired.
    fn time_limit(&self) -> Option<Instant> {
        self.jobs.iter().find(|job| !job.limit_reached).and_then(|job| job.time_limit)
    }

    fn stop_at_limit(&mut self) {
        self.jobs.iter_mut().for_each(RunningJob::stop_at_limit);
    }

    /// Ends the jobs that have no last event.
    fn fail(self, failure: &Failure) {
        self.jobs.into_iter().for_each(|job| job.end(Err(failure.clone())));
    }
}

/// A job in the slot: forwards its events and measures it.
struct RunningJob<'a> {
    shared: &'a Shared,
    slot: usize,
    /// Jobs of its group, which share the time of the slot.
    together: u32,
    accepted: QueuedJob,
    began: Instant,
    work: Work,
    first_token: Option<Instant>,
    last_token: Instant,
    /// When its `max_time` expires; `None` without a limit, and while its model is loaded.
    time_limit: Option<Instant>,
    /// `max_time` has expired; the tokens so far are returned as the answer.
    limit_reached: bool,
    /// The client has received its last event, although the slot may still be busy.
    is_answered: bool,
}

impl<'a> RunningJob<'a> {
    fn start(shared: &'a Shared, slot: usize, together: u32, mut accepted: QueuedJob) -> Self {
        let began = Instant::now();
        let queue_wait = began.saturating_duration_since(accepted.at);
        let waiter = PriorityLabel { priority: accepted.terms.priority.as_str() };
        shared.metrics.queue_wait.get_or_create(&waiter).observe(queue_wait.as_secs_f64());
        accepted.send(Event::Started { queue_wait });
        accepted.spans.iter_mut().for_each(JobSpans::started);
        let (work, first_token, last_token) = (accepted.work(), None, began);
        let mut running = Self {
            shared,
            slot,
            together,
            accepted,
            began,
            work,
            first_token,
            last_token,
            time_limit: None,
            limit_reached: false,
            is_answered: false,
        };
        running.start_time_limit();
        running
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Step(Step::Progress { done, .. }) => {
                let prompt = Tokens(self.work.prompt.0.saturating_sub(done));
                self.shared.note_progress(self.accepted.job.id, Work { prompt, ..self.work });
            }
            Event::Step(Step::Token(_)) => self.count_token(),
            Event::Loading => {
                self.time_limit = None;
                self.accepted.spans.iter_mut().for_each(JobSpans::loading);
            }
            Event::Loaded => {
                self.start_time_limit();
                self.accepted.spans.iter_mut().for_each(JobSpans::loaded);
            }
            Event::Step(Step::Logprobs(_)) => {}
            // The group handles the last event, and only the executor sends the first.
            Event::Started { .. } | Event::Done(_) | Event::Failed(_) => return,
        }
        if !self.is_answered {
            self.accepted.send(event);
        }
    }

    fn count_token(&mut self) {
        let now = Instant::now();
        let metrics = &self.shared.metrics;
        metrics.generated_tokens.inc();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.accepted.spans.iter_mut().for_each(JobSpans::first_token);
            metrics.time_to_first_token.observe((now - self.accepted.at).as_secs_f64());
        } else {
            metrics.inter_token_latency.observe((now - self.last_token).as_secs_f64());
        }
        self.last_token = now;
        self.work.generated.0 += 1;
        self.shared.note_progress(self.accepted.job.id, Work { prompt: Tokens(0), ..self.work });
    }

    /// Starts the job's `max_time`.
    fn start_time_limit(&mut self) {
        let given = self.accepted.terms.max_time;
        self.time_limit = given.and_then(|given| Instant::now().checked_add(given));
    }

    /// `max_time` has expired: stops the job after the current step.
    fn stop_at_limit(&mut self) {
        self.limit_reached = true;
        self.accepted.cancel.cancel();
    }

    /// Waits until the job has to fail, and returns why.
    async fn deadline(&self) -> Failure {
        tokio::select! {
            () = sleep_until_some(self.accepted.total_deadline) => {
                Failure::Deadline { elapsed: self.accepted.at.elapsed() }
            }
            () = self.shared.cut_off.cancelled() => Failure::ShuttingDown,
        }
    }

    /// Fails the job for the client now. The slot stays busy until the job has stopped.
    fn end_early(&mut self, failure: Failure) {
        self.is_answered = true;
        self.accepted.cancel.cancel();
        self.accepted.send(Event::Failed(failure));
    }

    fn end(mut self, ended: Result<Finish, Failure>) {
        let ended = ended.map(|finish| match finish.reason {
            // If the client has left at the same moment, no one reads this.
            EndReason::Cancelled if self.limit_reached => Finish { reason: EndReason::Length, ..finish },
            _ => finish,
        });
        match (&mut self.accepted.spans, &ended) {
            (Some(spans), Ok(finish)) => spans.ended(finish),
            (Some(spans), Err(_)) => spans.failed(),
            (None, _) => {}
        }
        let now = Instant::now();
        let metrics = &self.shared.metrics;
        metrics.job_duration.observe((now - self.accepted.at).as_secs_f64());
        if let Ok(finish) = &ended {
            metrics.prompt_tokens.inc_by(self.work.prompt.0 as u64);
            metrics.prompt_tokens_cached.inc_by(finish.usage.cached_tokens as u64);
            count_drafts(metrics, &finish.timings);
            // An end token has no event.
            let without_event = finish.usage.completion_tokens.saturating_sub(self.work.generated.0);
            metrics.generated_tokens.inc_by(without_event as u64);
        }
        let first_token = self.first_token.unwrap_or(now);
        let to_first_token = first_token - self.began;
        // Cached tokens were not computed, so they do not count for the speed.
        let cached = ended.as_ref().map_or(0, |finish| finish.usage.cached_tokens);
        let prompt = Tokens(self.work.prompt.0.saturating_sub(cached));
        let usage = SlotUsage {
            work: Work { prompt, ..self.work },
            to_first_token: to_first_token / self.together,
            rest: (now - first_token) / self.together,
        };
        self.shared.release(self.accepted.job.id, usage, self.record(&ended, now));
        if !self.is_answered {
            self.accepted.send(ended.map_or_else(Event::Failed, Event::Done));
        }
    }
}

impl RunningJob<'_> {
    /// The record of the finished job.
    fn record(&self, ended: &Result<Finish, Failure>, now: Instant) -> FinishedJob {
        let finish = ended.as_ref().ok();
        // If the client has received a failure, that is the outcome.
        let outcome = if self.is_answered { JobOutcome::Failed } else { ended.into() };
        FinishedJob {
            job: self.accepted.info(),
            slot: self.slot,
            ended: SystemTime::now(),
            outcome,
            queue_wait: self.began.saturating_duration_since(self.accepted.at),
            time: now.saturating_duration_since(self.began),
            generated: finish.map_or(self.work.generated, |finish| Tokens(finish.usage.completion_tokens)),
            memory: finish.map(|finish| finish.memory),
            settled: None,
        }
    }
}

fn count_drafts(metrics: &Metrics, timings: &Timings) {
    let Timings { drafted: all, drafted_by_model: by_model, .. } = timings;
    let [tokens, accepted] = [all.tokens - by_model.tokens, all.accepted - by_model.accepted];
    for (guesser, drafted) in
        [(DraftSourceLabel::TEXT, DraftCounts { tokens, accepted }), (DraftSourceLabel::MODEL, *by_model)]
    {
        metrics.draft_tokens.get_or_create(&guesser).inc_by(drafted.tokens as u64);
        metrics.draft_tokens_accepted.get_or_create(&guesser).inc_by(drafted.accepted as u64);
    }
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> Failure {
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    tracing::error!(panic = message, "the code that runs jobs panicked; the job fails, the queue continues");
    Failure::WorkerLost { message: format!("the code that runs jobs panicked: {message}") }
}
