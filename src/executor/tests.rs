//! These tests use tokio's paused clock, which advances when all tasks wait, so waits are exact and take no time.

use std::{future::pending, num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, UnboundedSender},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Deadlines, Executor, Limits, QueueChange, SubmitError, Ticket, in_turn::one_by_one};
use crate::{
    job::{EndReason, Event, Failure, Finish, Job, MemoryReport, Step, Timings, Usage},
    metrics::Metrics,
    units::Tokens,
};

const MS: Duration = Duration::from_millis(1);
const FOREVER: Deadlines = Deadlines { queue: Duration::MAX, total: Duration::MAX };

fn limits(max_jobs: usize) -> Limits {
    Limits { max_jobs: NonZeroUsize::new(max_jobs).unwrap(), max_prompt_tokens: Tokens(1_000) }
}

fn finish(reason: EndReason, completion_tokens: usize) -> Finish {
    let usage = Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 0 };
    Finish { reason, usage, timings: Timings::default(), memory: MemoryReport::default() }
}

/// Generates the job's number as a token once per `step`, until the job is complete or cancelled.
async fn generate(
    job: Job,
    events: UnboundedSender<Event>,
    cancel: CancellationToken,
    step: Duration,
) -> Result<Finish, Failure> {
    for generated in 0..job.max_new_tokens {
        tokio::select! {
            () = cancel.cancelled() => return Ok(finish(EndReason::Cancelled, generated)),
            () = sleep(step) => events.send(Event::Step(Step::Token(u32::try_from(job.id.0).unwrap()))).unwrap(),
        }
    }
    Ok(finish(EndReason::Length, job.max_new_tokens))
}

/// An executor whose jobs take `max_new_tokens` × 10 ms.
fn executor(max_jobs: usize) -> Executor {
    Executor::start(limits(max_jobs), Arc::new(Metrics::new()), |job, events, cancel| {
        generate(job, events, cancel, 10 * MS)
    })
}

impl Executor {
    fn ask(&self, max_new_tokens: usize, deadlines: Deadlines) -> Result<Ticket, SubmitError> {
        let id = self.new_id();
        self.submit(Job::new(id, vec![1, 2, 3], max_new_tokens), deadlines)
    }
}

/// The tokens, and the last event.
async fn read_all(ticket: &mut Ticket) -> (Vec<u32>, Event) {
    let mut tokens = vec![];
    loop {
        match ticket.next().await.unwrap() {
            Event::Step(Step::Token(token)) => tokens.push(token),
            Event::Step(Step::Logprobs(_)) => {}
            last @ (Event::Done(_) | Event::Failed(_)) => return (tokens, last),
            Event::Started { .. } | Event::Loading | Event::Loaded | Event::Step(Step::Progress { .. }) => {}
        }
    }
}

fn done(reason: EndReason, tokens: usize) -> Event {
    Event::Done(finish(reason, tokens))
}

#[tokio::test(start_paused = true)]
async fn a_job_starts_generates_and_ends_in_that_order() {
    let executor = Executor::start(limits(1), Arc::new(Metrics::new()), |_, events, _| async move {
        events.send(Event::Step(Step::Progress { done: 3, total: 3, cached: 1 })).unwrap();
        events.send(Event::Step(Step::Token(7))).unwrap();
        Ok(finish(EndReason::EndToken, 1))
    });
    let mut ticket = executor.ask(1, FOREVER).unwrap();
    let mut heard = vec![];
    while let Some(event) = ticket.next().await {
        heard.push(event);
    }
    let started = Event::Started { queue_wait: Duration::ZERO };
    let progress = Event::Step(Step::Progress { done: 3, total: 3, cached: 1 });
    assert_eq!(heard, [started, progress, Event::Step(Step::Token(7)), done(EndReason::EndToken, 1)]);
}

#[tokio::test(start_paused = true)]
async fn jobs_run_one_at_a_time_in_order_and_without_a_gap() {
    let executor = executor(8);
    let begun = Instant::now();
    let mut tickets: Vec<_> = (0..3).map(|_| executor.ask(10, FOREVER).unwrap()).collect();
    for (place, ticket) in tickets.iter_mut().enumerate() {
        let queue_wait = 100 * MS * u32::try_from(place).unwrap();
        assert_eq!(ticket.next().await, Some(Event::Started { queue_wait }));
        assert_eq!(read_all(ticket).await.1, done(EndReason::Length, 10));
    }
    assert_eq!(begun.elapsed(), 300 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_says_when_to_retry() {
    let executor = executor(2);
    let _running = executor.ask(100, FOREVER).unwrap();
    sleep(MS).await;
    let _waiting = [executor.ask(100, FOREVER).unwrap(), executor.ask(100, FOREVER).unwrap()];
    let refused = executor.ask(1, FOREVER).unwrap_err();
    let SubmitError::Busy { jobs, prompt_tokens, retry_after, .. } = refused else { panic!("{refused}") };
    assert_eq!((jobs, prompt_tokens), (2, Tokens(6)));
    assert!(retry_after >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_queue_deadline_is_exact_and_frees_the_place() {
    let executor = executor(1);
    let _running = executor.ask(1_000, FOREVER).unwrap();
    sleep(MS).await;
    let begun = Instant::now();
    let mut late = executor.ask(1, Deadlines { queue: 50 * MS, total: Duration::MAX }).unwrap();
    let (_, last) = read_all(&mut late).await;
    assert_eq!(last, Event::Failed(Failure::QueueTimeout { waited: 50 * MS }));
    assert_eq!(begun.elapsed(), 50 * MS);
    assert_eq!(executor.summary().queued_jobs, 0);
    executor.ask(1, FOREVER).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_later_job_may_have_the_earlier_deadline() {
    let executor = executor(4);
    let _running = executor.ask(1_000, FOREVER).unwrap();
    sleep(MS).await;
    let patient = executor.ask(1, Deadlines { queue: Duration::from_secs(5), total: Duration::MAX }).unwrap();
    sleep(MS).await;
    let mut late = executor.ask(1, Deadlines { queue: 30 * MS, total: Duration::MAX }).unwrap();
    read_all(&mut late).await;
    assert_eq!(executor.summary().queued_jobs, 1);
    drop(patient);
}

#[tokio::test(start_paused = true)]
async fn the_total_deadline_ends_a_running_job_and_the_next_one_runs() {
    let executor = executor(4);
    let mut long = executor.ask(1_000, Deadlines { queue: Duration::MAX, total: 95 * MS }).unwrap();
    let mut next = executor.ask(2, FOREVER).unwrap();
    let (tokens, last) = read_all(&mut long).await;
    assert_eq!((tokens.len(), last), (9, Event::Failed(Failure::Deadline { elapsed: 95 * MS })));
    assert!(long.next().await.is_none(), "nothing follows the last event");
    assert_eq!(read_all(&mut next).await, (vec![2, 2], done(EndReason::Length, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_its_deadline_error_even_if_the_job_does_not_stop() {
    let executor = Executor::start(limits(4), Arc::new(Metrics::new()), |_, _, _| pending());
    let mut stuck = executor.ask(1, Deadlines { queue: Duration::MAX, total: 50 * MS }).unwrap();
    assert_eq!(read_all(&mut stuck).await.1, Event::Failed(Failure::Deadline { elapsed: 50 * MS }));
    assert!(!executor.summary().running.is_empty(), "the slot stays busy until the job has stopped");
}

#[tokio::test(start_paused = true)]
async fn a_queued_client_that_leaves_never_disturbs_the_running_job() {
    let executor = executor(30);
    let mut running = executor.ask(50, FOREVER).unwrap();
    sleep(15 * MS).await;
    let queued: Vec<_> = (0..20).map(|_| executor.ask(5, FOREVER).unwrap()).collect();
    assert_eq!(executor.summary().queued_jobs, 20);
    drop(queued);
    assert_eq!(executor.summary().queued_jobs, 0);
    assert_eq!(read_all(&mut running).await, (vec![1; 50], done(EndReason::Length, 50)));
}

#[tokio::test(start_paused = true)]
async fn a_running_client_that_leaves_frees_the_slot_for_the_next() {
    let executor = executor(4);
    let running = executor.ask(1_000_000, FOREVER).unwrap();
    let mut next = executor.ask(1, FOREVER).unwrap();
    sleep(15 * MS).await;
    drop(running);
    assert_eq!(read_all(&mut next).await, (vec![2], done(EndReason::Length, 1)));
}

#[tokio::test(start_paused = true)]
async fn cancelling_is_idempotent_whether_waiting_running_or_over() {
    let executor = executor(4);
    let mut running = executor.ask(1_000, FOREVER).unwrap();
    let mut waiting = executor.ask(1_000, FOREVER).unwrap();
    sleep(25 * MS).await;
    for _ in 0..2 {
        waiting.cancel();
        running.cancel();
    }
    assert_eq!(read_all(&mut waiting).await.1, done(EndReason::Cancelled, 0));
    assert_eq!(read_all(&mut running).await, (vec![1, 1], done(EndReason::Cancelled, 2)));
    running.cancel();
    assert!(running.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_job_and_the_queue_continues() {
    let executor = Executor::start(limits(4), Arc::new(Metrics::new()), |job, events, cancel| {
        assert!(job.id.0 != 1, "the first call panics");
        async move {
            assert!(job.id.0 != 2, "the second future panics");
            generate(job, events, cancel, MS).await
        }
    });
    let mut tickets: Vec<_> = (0..3).map(|_| executor.ask(1, FOREVER).unwrap()).collect();
    for phrase in ["the first call panics", "the second future panics"] {
        let (_, last) = read_all(&mut tickets.remove(0)).await;
        assert!(
            matches!(&last, Event::Failed(Failure::WorkerLost { message }) if message.contains(phrase)),
            "{last:?}"
        );
    }
    assert_eq!(read_all(&mut tickets[0]).await.1, done(EndReason::Length, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_does_not_block_the_slot() {
    let executor = executor(4);
    let _unread = executor.ask(500, FOREVER).unwrap();
    let mut next = executor.ask(1, FOREVER).unwrap();
    assert_eq!(read_all(&mut next).await.1, done(EndReason::Length, 1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_waiting_jobs_and_refuses_new_ones() {
    let executor = executor(4);
    let mut tickets = [executor.ask(10, FOREVER).unwrap(), executor.ask(10, FOREVER).unwrap()];
    let draining = tokio::spawn({
        let executor = executor.clone();
        async move { executor.drain(Duration::from_secs(60)).await }
    });
    sleep(MS).await;
    assert_eq!(executor.ask(1, FOREVER).unwrap_err(), SubmitError::Stopped);
    assert!(!executor.summary().accepting);
    for ticket in &mut tickets {
        assert_eq!(read_all(ticket).await.1, done(EndReason::Length, 10));
    }
    draining.await.unwrap();
    assert!(executor.summary().running.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_fails_the_rest_after_its_grace_time() {
    let executor = executor(4);
    let mut tickets = [executor.ask(1_000, FOREVER).unwrap(), executor.ask(10, FOREVER).unwrap()];
    let begun = Instant::now();
    executor.drain(55 * MS).await;
    assert_eq!(begun.elapsed(), 55 * MS);
    assert_eq!(read_all(&mut tickets[0]).await, (vec![1; 5], Event::Failed(Failure::ShuttingDown)));
    assert_eq!(read_all(&mut tickets[1]).await, (vec![], Event::Failed(Failure::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_a_job_that_does_not_stop() {
    let executor = Executor::start(limits(4), Arc::new(Metrics::new()), |_, _, _| pending());
    let _stuck = executor.ask(1, FOREVER).unwrap();
    let begun = Instant::now();
    executor.drain(50 * MS).await;
    assert_eq!(begun.elapsed(), 50 * MS + super::handle::STOPPING);
}

#[tokio::test(start_paused = true)]
async fn the_closure_is_dropped_when_a_drain_is_over() {
    let (alive, mut dropped) = mpsc::channel::<()>(1);
    let executor = Executor::start(limits(4), Arc::new(Metrics::new()), move |job, events, cancel| {
        let _held = &alive;
        generate(job, events, cancel, MS)
    });
    read_all(&mut executor.ask(1, FOREVER).unwrap()).await;
    executor.drain(MS).await;
    assert!(dropped.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn jobs_and_tokens_are_counted() {
    let metrics = Arc::new(Metrics::new());
    let executor =
        Executor::start(limits(4), metrics.clone(), |job, events, cancel| generate(job, events, cancel, MS));
    let mut first = executor.ask(5, FOREVER).unwrap();
    let second = executor.ask(5, FOREVER).unwrap();
    sleep(MS / 2).await;
    assert_eq!(
        (metrics.queue_jobs.get(), metrics.queue_prompt_tokens.get(), metrics.slot_busy.get()),
        (1, 3, 1)
    );
    drop(second);
    read_all(&mut first).await;
    assert_eq!(
        (metrics.queue_jobs.get(), metrics.queue_prompt_tokens.get(), metrics.slot_busy.get()),
        (0, 0, 0)
    );
    assert_eq!((metrics.generated_tokens.get(), metrics.prompt_tokens.get()), (5, 3));
    let text = metrics.render().unwrap();
    for (figure, count) in [("time_to_first_token", 1), ("inter_token_latency", 4), ("job_duration", 1)] {
        let line = format!("eka_{figure}_seconds_count {count}");
        assert!(text.contains(&line), "{line} is missing from:\n{text}");
    }
    assert!(text.contains("eka_queue_wait_seconds_count{priority=\"interactive\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn two_slots_run_two_jobs_at_a_time_and_end_when_the_queue_is_drained() {
    let run = || one_by_one(|job: Job, events, cancel| generate(job, events, cancel, 10 * MS));
    let (executor, work) = Executor::with_slots(limits(9), Arc::new(Metrics::new()), vec![run(), run()]);
    let work = tokio::spawn(work);
    let mut tickets: Vec<_> = (0..5).map(|_| executor.ask(10, FOREVER).unwrap()).collect();
    sleep(5 * MS).await;
    let running: Vec<u64> = executor.summary().running.iter().map(|(id, _)| id.0).collect();
    assert_eq!(running, [1, 2]);
    let began = Instant::now();
    for ticket in &mut tickets {
        assert_eq!(read_all(ticket).await.1, done(EndReason::Length, 10));
    }
    assert!(began.elapsed() < 350 * MS, "five jobs of 100 ms took {:?}", began.elapsed());
    executor.drain(Duration::from_secs(1)).await;
    work.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_remote_queue_run_when_they_are_claimed_and_not_after_they_have_left() {
    let (executor, queue, mut changes, deadlines) = Executor::remote(limits(2), Arc::new(Metrics::new()));
    tokio::spawn(deadlines);
    let mut first = executor.ask(3, FOREVER).unwrap();
    let second = executor.ask(3, FOREVER).unwrap();
    assert!(matches!(executor.ask(3, FOREVER), Err(SubmitError::Busy { .. })), "no slot is known");
    let mut accepted = Vec::new();
    for _ in 0..2 {
        let Some(QueueChange::Accepted(group)) = changes.recv().await else { panic!("an accepted group") };
        accepted.push(group.group);
    }
    drop(second);
    assert!(matches!(changes.recv().await, Some(QueueChange::Withdrawn(group)) if group == accepted[1]));
    assert!(queue.claim(accepted[1], 0).is_none(), "its client has left");
    assert!(queue.is_waiting(accepted[0]));
    let claimed = queue.claim(accepted[0], 0).unwrap();
    assert!(queue.claim(accepted[0], 1).is_none(), "it is claimed once");
    let run = queue.run(claimed, |jobs, events| async move {
        let job = &jobs[0].job;
        events.send((job.id, Event::Step(Step::Token(7)))).unwrap();
        events.send((job.id, done(EndReason::EndToken, 1))).unwrap();
        Ok(())
    });
    let ((), read) = tokio::join!(run, read_all(&mut first));
    assert_eq!(read, (vec![7], done(EndReason::EndToken, 1)));
    assert_eq!(executor.summary().running, []);
}

#[tokio::test(start_paused = true)]
async fn a_remote_queue_counts_free_slots_and_the_jobs_of_other_queues() {
    let (executor, queue, _changes, _deadlines) = Executor::remote(limits(2), Arc::new(Metrics::new()));
    queue.set_slots(3, 1);
    let tickets: Vec<_> = (0..3).map(|_| executor.ask(3, FOREVER).unwrap()).collect();
    assert!(matches!(executor.ask(3, FOREVER), Err(SubmitError::Busy { .. })), "two wait beside a free slot");
    drop(tickets);
    queue.set_waiting_elsewhere(3);
    let Err(SubmitError::Busy { jobs, .. }) = executor.ask(3, FOREVER) else { panic!("others wait") };
    assert_eq!(jobs, 3);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_withdraws_a_job_of_a_remote_queue() {
    let (executor, queue, mut changes, deadlines) = Executor::remote(limits(2), Arc::new(Metrics::new()));
    tokio::spawn(deadlines);
    let limits = Deadlines { queue: 50 * MS, total: Duration::MAX };
    let mut ticket = executor.ask(3, limits).unwrap();
    assert!(matches!(ticket.next().await, Some(Event::Failed(Failure::QueueTimeout { .. }))));
    assert!(matches!(changes.recv().await, Some(QueueChange::Accepted(_))));
    let Some(QueueChange::Withdrawn(group)) = changes.recv().await else { panic!("it is withdrawn") };
    assert!(queue.claim(group, 0).is_none());
}
