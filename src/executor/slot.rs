//! The one slot: takes a job off the queue, runs it, says what happens, takes the next.

use std::{panic::AssertUnwindSafe, sync::Arc, time::SystemTime};

use futures_util::FutureExt;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    estimate::{SlotUsage, Work},
    queue::QueuedJob,
    snapshot::{FinishedJob, JobOutcome},
};
use crate::{
    job::{DraftCounts, Event, Failure, Finish, FinishReason, Job, Step, Timings},
    metrics::{DraftSourceLabel, Metrics, PriorityLabel},
    otel::JobSpans,
    units::Tokens,
};

/// Runs the jobs that are this slot's, until the queue is closed and empty.
pub(super) async fn serve<R, F>(shared: Arc<Shared>, slot: usize, mut run: R)
where
    R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send,
    F: Future<Output = Result<Finish, Failure>> + Send,
{
    loop {
        // From before the look, so that nothing arrives unseen in between.
        let arrived = shared.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        match shared.take_next(slot) {
            Some(accepted) => {
                run_one(&shared, slot, &mut run, accepted).await;
                // It may be another slot's turn now, and no job's arrival will tell it.
                shared.arrived.notify_waiters();
            }
            None if shared.is_over() => return,
            None => arrived.await,
        }
    }
}

/// Tells waiting jobs that their time is over at the moment it is, not when the slot is next free.
pub(super) async fn watch_deadlines(shared: Arc<Shared>) {
    loop {
        let next = shared.give_up_on_late();
        tokio::select! {
            () = sleep_until_some(next) => {}
            () = shared.deadlines_changed.notified() => {}
        }
    }
}

async fn run_one<R, F>(shared: &Shared, slot: usize, run: &mut R, accepted: QueuedJob)
where
    R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send,
    F: Future<Output = Result<Finish, Failure>> + Send,
{
    let (sender, mut said) = unbounded_channel();
    let (job, cancel) = (accepted.job.clone(), accepted.cancel.clone());
    // The call itself is inside, so that a panic before the first await is caught as well.
    let work = AssertUnwindSafe(async { run(job, sender, cancel).await }).catch_unwind();
    tokio::pin!(work);
    let mut show = RunningJob::start(shared, slot, accepted);
    let ended = loop {
        tokio::select! {
            biased;
            Some(event) = said.recv() => show.hear(event),
            failure = show.cut_short(), if !show.is_over => show.end_early(failure),
            () = sleep_until_some(show.time_is_up), if !show.is_cut => show.cut(),
            ended = &mut work => break ended,
        }
    };
    while let Ok(event) = said.try_recv() {
        show.hear(event);
    }
    show.end(ended.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
}

/// One job's time in the slot: what is passed on to the client, and what is learned and counted from it.
struct RunningJob<'a> {
    shared: &'a Shared,
    slot: usize,
    accepted: QueuedJob,
    began: Instant,
    work: Work,
    first_token: Option<Instant>,
    last_token: Instant,
    /// When it is cut, if it has been given a time; not known while its model is loaded.
    time_is_up: Option<Instant>,
    /// Its time was up, and its runner was told to stop: what there is is the answer.
    is_cut: bool,
    /// The client has had its last event, though the slot may not be free yet.
    is_over: bool,
}

impl<'a> RunningJob<'a> {
    fn start(shared: &'a Shared, slot: usize, mut accepted: QueuedJob) -> Self {
        let began = Instant::now();
        let queue_wait = began.saturating_duration_since(accepted.at);
        let waiter = PriorityLabel { priority: accepted.terms.priority.as_str() };
        shared.metrics.queue_wait.get_or_create(&waiter).observe(queue_wait.as_secs_f64());
        accepted.tell(Event::Started { queue_wait });
        accepted.spans.iter_mut().for_each(JobSpans::started);
        let (work, first_token, last_token) = (accepted.work(), None, began);
        let mut show = Self {
            shared,
            slot,
            accepted,
            began,
            work,
            first_token,
            last_token,
            time_is_up: None,
            is_cut: false,
            is_over: false,
        };
        show.begin_its_time();
        show
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Step(Step::Progress { done, .. }) => {
                let prompt = Tokens(self.work.prompt.0.saturating_sub(done));
                self.shared.note_progress(self.accepted.job.id, Work { prompt, ..self.work });
            }
            Event::Step(Step::Token(_)) => self.count_token(),
            Event::Loading => {
                self.time_is_up = None;
                self.accepted.spans.iter_mut().for_each(JobSpans::loading);
            }
            Event::Loaded => {
                self.begin_its_time();
                self.accepted.spans.iter_mut().for_each(JobSpans::loaded);
            }
            Event::Step(Step::Logprobs(_)) => {}
            // How a job starts and ends is the executor's word.
            Event::Started { .. } | Event::Done(_) | Event::Failed(_) => return,
        }
        if !self.is_over {
            self.accepted.tell(event);
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

    /// From here on the time counts that it was given.
    fn begin_its_time(&mut self) {
        let given = self.accepted.terms.max_time;
        self.time_is_up = given.and_then(|given| Instant::now().checked_add(given));
    }

    /// Its time is up: the runner stops after the current step, and the client has what there is.
    fn cut(&mut self) {
        self.is_cut = true;
        self.accepted.cancel.cancel();
    }

    /// Returns when the job must end before it is done, with the reason.
    async fn cut_short(&self) -> Failure {
        tokio::select! {
            () = sleep_until_some(self.accepted.total_deadline) => {
                Failure::Deadline { elapsed: self.accepted.at.elapsed() }
            }
            () = self.shared.cut_off.cancelled() => Failure::ShuttingDown,
        }
    }

    /// The client hears of it now; the slot is free when the runner has stopped.
    fn end_early(&mut self, failure: Failure) {
        self.is_over = true;
        self.accepted.cancel.cancel();
        self.accepted.tell(Event::Failed(failure));
    }

    fn end(mut self, ended: Result<Finish, Failure>) {
        let ended = ended.map(|finish| match finish.reason {
            // A client that leaves at that very moment does not hear it.
            FinishReason::Cancelled if self.is_cut => Finish { reason: FinishReason::Length, ..finish },
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
            count_guesses(metrics, &finish.timings);
            // The token that ended it, which had no event.
            let unheard = finish.usage.completion_tokens.saturating_sub(self.work.generated.0);
            metrics.generated_tokens.inc_by(unheard as u64);
        }
        let first_token = self.first_token.unwrap_or(now);
        let to_first_token = first_token - self.began;
        // What was not computed says nothing about speed.
        let cached = ended.as_ref().map_or(0, |finish| finish.usage.cached_tokens);
        let prompt = Tokens(self.work.prompt.0.saturating_sub(cached));
        self.shared.release(
            self.accepted.job.id,
            SlotUsage { work: Work { prompt, ..self.work }, to_first_token, rest: now - first_token },
            self.past(&ended, now),
        );
        if !self.is_over {
            self.accepted.tell(ended.map_or_else(Event::Failed, Event::Done));
        }
    }
}

impl RunningJob<'_> {
    /// What is remembered of the job.
    fn past(&self, ended: &Result<Finish, Failure>, now: Instant) -> FinishedJob {
        let finish = ended.as_ref().ok();
        // A client that was told of a failure was told of nothing else.
        let outcome = if self.is_over { JobOutcome::Failed } else { ended.into() };
        FinishedJob {
            job: self.accepted.entry(),
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

fn count_guesses(metrics: &Metrics, timings: &Timings) {
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
    let said = payload.downcast_ref::<&str>().copied();
    let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no message");
    tracing::error!(
        panic = said,
        "the code that feeds the worker panicked; the job fails, the queue goes on"
    );
    Failure::WorkerLost { message: format!("the code that feeds it panicked: {said}") }
}
